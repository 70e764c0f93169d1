"""The plan of a run, as a person reads it."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from src.engine.optimizer import warmup_steps
from src.model.trainable import what_is_trained
from src.planner.launch import launch_command
from src.planner.words import ASSUMED, fit_rows, launch_notes, memory_words
from src.training.plan import Plan


def print_plan(plan: Plan, overrides: list[str]) -> None:
    """Print the plan to standard output; supervised spans are green, and between ⟦ ⟧ where there is no colour."""
    console = Console(highlight=False)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows(plan):
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    console.print(table)
    console.print("\n[bold]GPUs[/bold]")
    gpus = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in fit_rows(plan.fits, plan.steps):
        gpus.add_row(f"[bold]{name}[/bold]", escape(value))
    console.print(gpus)
    console.print(f"[dim]{ASSUMED}[/dim]")
    console.print("\n[bold]Examples[/bold] (supervised span in [green]green[/green], between ⟦ ⟧)")
    for number, example in enumerate(plan.examples, 1):
        console.print(f"[dim]{number}.[/dim] {escape(example.prompt)}[green]⟦{escape(example.response)}⟧[/green]\n")
    for note in [*plan.notes, *launch_notes(plan.setting)]:
        console.print(f"[yellow]note[/yellow] {escape(note)}")
    console.print("\n[bold]Launch[/bold]")
    console.print(f"  {launch_command(plan.setting, overrides)}", soft_wrap=True, markup=False)


def rows(plan: Plan) -> list[tuple[str, str]]:
    """The lines of the plan's table."""
    config, training = plan.config, plan.config.training
    setting, share = plan.setting, plan.shape.share
    about = "" if plan.exact else "about "
    tokens = int(plan.rows.tokens * plan.steps * training.global_batch_size)
    recipe = f"conf/recipe/{plan.recipe}.yaml" if plan.recipe else "none: the defaults of conf/train.yaml are untuned"
    return [
        ("method", f"{config.method['name']} ({needs_text(plan)})"),
        ("recipe", recipe),
        ("model", f"{config.model.name}, {share.total / 1e6:,.1f} M parameters, init={config.model.init}"),
        ("trained", f"{share}: {what_is_trained(config)}"),
        ("data", f"{config.dataset.name}: {about}{plan.pairs['train']} training, {plan.pairs['validation']} held out"),
        (
            "batch",
            f"{training.global_batch_size} pairs = {training.micro_batch_size} a forward x {setting.micro_steps} "
            f"accumulated x {setting.world} rank{'s' if setting.world > 1 else ''}",
        ),
        ("steps", f"{plan.steps} optimizer steps, {training.epochs:g} epochs, lr {training.learning_rate:g}"),
        ("tokens", f"{about}{tokens:,} in all; longest row {about}{plan.rows.longest}"),
        ("optimizer", optimizer_text(plan)),
        ("memory", memory_words(plan.memory)),
        ("directory", str(plan.directory)),
    ]


def optimizer_text(plan: Plan) -> str:
    """The optimizer and how its rate goes."""
    training = plan.config.training
    return f"{training.optimizer}, {warmup_steps(training, plan.steps)} steps of warm-up, then {training.scheduler}"


def needs_text(plan: Plan) -> str:
    """What the method asks of data and step."""
    needs = plan.needs
    wanted = [name for name in ("rejected", "reference", "scores") if getattr(needs, name)]
    if needs.mismatched:
        wanted.append("mismatched responses (a further forward)")
    if needs.statistics is not None:
        wanted.append(
            f"statistics over {'one forward' if needs.statistics == 'forward' else f'{needs.statistics} pairs'}"
        )
    return "needs " + (", ".join(wanted) or "demonstrations only")
