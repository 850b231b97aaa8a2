import click

from pointer_rl import hookimpl


@hookimpl
def pointer_rl_register_commands(cli):
    @cli.command()
    def generate():
        """Not the generate that you know."""
        click.echo("taken over")
