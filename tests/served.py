"""A server of `nas.loopback` while a test asks it things."""

import http.client
import threading
from contextlib import contextmanager


@contextmanager
def running(made):
    """The server at work; gives its port."""
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    try:
        yield made.effective_port
    finally:
        made.trigger.pull_trigger(lambda: made.asyncore.close_all(made._map))
        thread.join(30)
        made.task_dispatcher.shutdown()


def asked(port, method="GET", path="/", body=None, **headers):
    """(status, kind, content) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get_content_type(), answer.read()
    finally:
        connection.close()
