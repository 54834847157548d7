"""A network of a file as a function: its inputs in order -> its outputs in order, all with the batch in front."""


def load(path):
    """By ONNX Runtime, or by ExecuTorch where the file is its own."""
    return load_executorch(path) if path.suffix == ".pte" else load_onnx(path)


def load_onnx(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if ".fp16" in path.name:  # onnxruntime 1.31.1 dies in what it does to these beyond this level
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def load_executorch(path):
    """Its file takes one picture at a time, and its Python is made of torch's tensors."""
    import numpy as np
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")

    def network(*inputs, kept=program):  # whose memory the method reads
        rows = [[torch.from_numpy(part[row : row + 1]) for part in inputs] for row in range(len(inputs[0]))]
        made = [[value.numpy().copy() for value in method.execute(row)] for row in rows]
        return [np.concatenate(parts) for parts in zip(*made, strict=True)]

    return network
