"""The coordinator: what is asked, trained, stopped and concluded in a study."""
