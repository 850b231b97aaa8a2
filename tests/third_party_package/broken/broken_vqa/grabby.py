from pointer_rl import hookimpl


@hookimpl
def pointer_rl_register_metrics(register):
    register("broken", object, summary="not to be seen")
    register("vqa", object, summary="a name that is taken")
