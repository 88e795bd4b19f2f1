"""`sluice usage` and `sluice budget`: what was spent with providers, and how much may be spent a day."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

import click
from rich.console import Console
from rich.table import Table

from worker.operate.terminal import ask

_BY = ("day", "tenant", "document", "job", "provider", "model")
_MOST_USD = Decimal(1_000_000_000)


@click.command()
@click.option("--tenant", type=click.UUID, help="Only this tenant's usage.")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="From this day or moment on, in UTC. Default: the last 30 days.",
)
@click.option("--by", type=click.Choice(_BY), default="day", show_default=True, help="What the sums are made for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def usage(tenant: UUID | None, since: datetime | None, by: str, as_json: bool) -> None:
    """Show what was spent with providers: pages, tokens, requests and USD.

    Days are in their order, everything else begins with the dearest. The money is what the price table
    said when it was spent; what has no price is counted in a column of its own.

    Exit codes: 0 done; 1 the database did not answer; 2 wrong usage or settings.
    """
    begin = since.replace(tzinfo=UTC) if since else datetime.now(UTC) - timedelta(days=30)
    rows = ask(lambda db, _: db.fetch("usage_by", by, tenant, begin))
    sums = [
        {
            by: row["key"], "pages": row["pages"], "tokens": row["tokens"], "requests": row["requests"],
            "usd": _text(row["money"]), "unpriced": row["unpriced"],
        }
        for row in rows
    ]  # fmt: skip
    if as_json:
        click.echo(json.dumps({"since": begin.isoformat(), "tenant": tenant and str(tenant), "usage": sums}))
        return
    table = Table(by, "pages", "tokens", "requests", "USD", "without price")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row["key"], f"{row['pages']:,}", f"{row['tokens']:,}", f"{row['requests']:,}",
            _usd(row["money"], none="?"), str(row["unpriced"] or ""),
        )  # fmt: skip
    Console().print(table if rows else "Nothing was spent.")


@click.group()
def budget() -> None:
    """Set and list how much may be spent a day.

    When a budget is used up its files wait until the next day begins (UTC), and an alert says so.
    """


@budget.command("set")
@click.argument("usd")
@click.option("--tenant", type=click.UUID, help="Of this tenant, instead of the default of all tenants.")
@click.option("--project", "whole", is_flag=True, help="Of all tenants together.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def set_budget(usd: str, tenant: UUID | None, whole: bool, as_json: bool) -> None:
    """Let USD be spent a day; "none" for no limit.

    Without an option it is what every tenant may spend that has no budget of its own. Files that
    wait for the next day go on at once where there is room now.

    Exit codes: 0 done; 1 the database refused it or did not answer; 2 wrong usage or settings.
    """
    if tenant is not None and whole:
        raise click.UsageError("Give --tenant or --project, not both.")
    amount = _amount(usd)
    scope = "tenant" if tenant else "project" if whole else "default"
    woken = ask(lambda db, _: db.fetchval("set_budget", scope, tenant, amount))
    if as_json:
        click.echo(json.dumps({"scope": scope, "tenant": tenant and str(tenant), "daily_usd": _text(amount),
                               "woken": woken}))  # fmt: skip
        return
    whose = {"tenant": f"Tenant {tenant}", "project": "The whole project", "default": "Each tenant by default"}[scope]
    click.echo(f"{whose} may spend {'without limit' if amount is None else f'{amount} USD a day'}.")
    if woken:
        click.echo(f"{woken} waiting jobs go on now.")


@budget.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_budgets(as_json: bool) -> None:
    """List the budgets, and what was spent of them today (UTC).

    Exit codes: 0 done; 1 the database did not answer; 2 wrong settings.
    """
    rows = ask(lambda db, _: db.fetch("list_budgets"))
    if as_json:
        click.echo(json.dumps({"budgets": [
            {"scope": row["scope"], "tenant": row["tenant_id"] and str(row["tenant_id"]),
             "daily_usd": _text(row["daily_usd"]), "spent_usd": _text(row["spent_usd"])} for row in rows
        ]}))  # fmt: skip
        return
    table = Table("whose", "USD a day", "spent today")
    for column in table.columns[1:]:
        column.justify = "right"
    names = {"project": "whole project", "default": "each tenant by default"}
    for row in rows:
        spent = "" if row["scope"] == "default" else _usd(row["spent_usd"], none="")
        table.add_row(
            names.get(row["scope"], str(row["tenant_id"])), _usd(row["daily_usd"], none="no limit"), spent
        )  # fmt: skip
    Console().print(table)


def _amount(text: str) -> Decimal | None:
    if text == "none":
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal(-1)
    if not (amount.is_finite() and 0 <= amount <= _MOST_USD):
        raise click.UsageError('USD must be an amount like 2.50, or "none" for no limit.')
    return amount


def _text(money: Decimal | None) -> str | None:
    """Money as text: a float would not hold it exactly."""
    return None if money is None else f"{money:f}"


def _usd(money: Any, *, none: str) -> str:
    return none if money is None else f"{money:,.4f}"
