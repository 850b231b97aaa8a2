from pointer_rl import hookimpl


@hookimpl
def pointer_rl_register_backend(register):
    """The hook is called …_backends."""
