"""What the migrations made, as it stands in the database: history, bucket, trigger, policies, rights, queue."""

from __future__ import annotations

import json

import asyncpg

from worker.operate.doctor import migrations
from worker.operate.doctor.check import Check, Problem
from worker.operate.doctor.examination import Examination

WORKER = "ingest_worker"
_EXTENSION, _SCHEMA = "vector", "extensions"
_POLICIES = frozenset({"sluice_read", "sluice_insert", "sluice_update", "sluice_delete"})
_STUCK_SECONDS = 600
_PUSH = "Apply them: scripts/deploy, or supabase db push with the project's database URL."

EXTENSION_MISSING = Problem(
    "extension_missing",
    "The extension vector (pgvector) is not installed in this database.",
    "Run: create extension vector with schema extensions; then apply the migrations.",
)
EXTENSION_ELSEWHERE = Problem(
    "extension_elsewhere",
    "The extension vector is installed in the schema {schema}, and Sluice looks for it in extensions.",
    "Run as its owner: alter extension vector set schema extensions;",
)
BEHIND = Problem(
    "migrations_behind",
    "This version's migrations are not all applied: {count} missing, the first is {first}.",
    _PUSH,
)
AHEAD = Problem(
    "migrations_ahead",
    "This code is older than the database, which has migrations that it does not know: {count}, the newest {newest}.",
    "Deploy the version that brought them; an older worker beside them works only for as long as a deploy takes.",
    warning=True,
)
DIFFERING = Problem(
    "migrations_differ",
    "The migration {first} was applied with other statements than this version has ({count} in all differ).",
    "Find out who edited it: applied files are never edited. Put the file back, and write a new migration instead.",
)
UNREADABLE = Problem(
    "migrations_unreadable",
    "The login {login} may not use the schema ingest, so nothing can be said of the migrations.",
    "Let DATABASE_URL log in as ingest_worker; if it does, grant usage on schema ingest to it.",
)
NOT_PACKAGED = Problem(
    "migrations_not_packaged",
    "This installation came without its list of migrations, so nothing can be compared.",
    "Install the wheel, or keep the folder supabase/migrations beside the folder worker.",
    warning=True,
)
BUCKET_MISSING = Problem(
    "bucket_missing",
    "The bucket {bucket} is watched, but Storage has no such bucket.",
    "Create it in Storage (private), or stop watching it: delete its row in ingest.buckets.",
)
NO_BUCKET = Problem(
    "bucket_none",
    "No bucket is watched, so no upload becomes a document.",
    "Watch one: sluice backfill BUCKET --watch",
)
BUCKET_PUBLIC = Problem(
    "bucket_public",
    "The bucket {bucket} is public: whoever has an object's address reads it, whatever the policies say.",
    "Make it private in the dashboard (Storage, edit bucket).",
)
TRIGGER_MISSING = Problem(
    "trigger_missing",
    "The trigger sluice_object_changed on storage.objects is missing, so uploads make no jobs.",
    "Apply the migration 20261123001700_storage_trigger.sql again (its last statement is enough), then run: "
    "sluice reconcile",
)
TRIGGER_DISABLED = Problem(
    "trigger_disabled",
    "The trigger sluice_object_changed on storage.objects is disabled, so uploads make no jobs.",
    "Run: alter table storage.objects enable trigger sluice_object_changed; then: sluice reconcile",
)
RLS_OFF = Problem(
    "storage_rls_off",
    "Row-level security is off for storage.objects: everybody reads and writes every object.",
    "Switch it on in the dashboard (Authentication, Policies, storage.objects).",
)
POLICIES_MISSING = Problem(
    "storage_policies_missing",
    "Policies on storage.objects are missing: {which}.",
    "Apply the migration 20261123001800_storage_policies.sql again, or write them in the dashboard as it has them.",
)
REALTIME_POLICY = Problem(
    "realtime_policy_missing",
    "The policy sluice_receive on realtime.messages is missing, so people cannot follow their documents.",
    "Run: supabase migration repair --status reverted 20261127001200, then: supabase db push",
)
NOT_PUBLISHED = Problem(
    "realtime_not_published",
    "The table public.jobs is not in the publication supabase_realtime, so Postgres Changes tell nothing of jobs.",
    "Run: alter publication supabase_realtime add table public.jobs;",
    warning=True,
)
RIGHTS_FEW = Problem(
    "worker_rights_few",
    "The login {login} lacks rights that the worker needs: {which}.",
    "Grant them as the migrations do (grant … to ingest_worker), or let DATABASE_URL log in as ingest_worker.",
)
RIGHTS_MANY = Problem(
    "worker_rights_many",
    "The login {login} may do more than the worker should: {which}.",
    "Let DATABASE_URL log in as ingest_worker, and take from it what it was given by hand.",
)
PARTITION_MISSING = Problem(
    "partition_missing",
    "The timeline of jobs has no partition for {which}, so its events fall into the net.",
    "Run: select ingest.ensure_event_partitions(); and see why the workers' chores do not.",
    warning=True,
)
IGNORED_OBJECTS = Problem(
    "objects_ignored",
    "Objects in watched buckets that can never become documents: {count}; their first folder is no tenant's id.",
    "See select name, reason from ingest.ignored_objects; clients must upload to <tenant id>/…; move or delete these.",
    warning=True,
)
TRIGGER_FAILURES = Problem(
    "trigger_failures",
    "Changes of objects that could not be carried over to documents: {count}.",
    "See ingest.trigger_failures for why; mend that, then run: sluice reconcile",
    warning=True,
)
PAUSED = Problem(
    "queue_paused",
    "The queue has been paused since {since:%Y-%m-%d %H:%M} UTC, so no job is taken.",
    "Resume it when the reason is gone: sluice queue resume",
    warning=True,
)
STUCK = Problem(
    "queue_stuck",
    "Due jobs are not taken: {due}, the oldest for {minutes:.0f} minutes, and no worker holds any.",
    "Start a worker, or see the log of the one that runs: it takes nothing.",
)
NO_MODEL = Problem(
    "embedding_model_none",
    "No embedding model is active in the database, so the worker refuses to start and nothing is found by meaning.",
    "Run as an operator: sluice models add {provider} {name} {dimensions} --activate",
)
OTHER_MODEL = Problem(
    "embedding_model_differs",
    "The settings embed with {ours}, but the database's active embedding model is {theirs}.",
    "Correct SLUICE_EMBEDDER, SLUICE_EMBED_MODEL and SLUICE_EMBED_DIMENSIONS, or run as an operator: "
    "sluice models add {provider} {name} {dimensions} --activate",
)


async def extension(examination: Examination) -> str:
    """Find pgvector and its schema."""
    rows = await examination.ask("find_extension", _EXTENSION)
    if not rows:
        raise EXTENSION_MISSING.found()
    if rows[0]["schema"] != _SCHEMA:
        raise EXTENSION_ELSEWHERE.found(schema=rows[0]["schema"])
    return f"pgvector {rows[0]['version']} is in the schema {_SCHEMA}."


async def history(examination: Examination) -> str:
    """Compare the migrations that were applied with those of this version, by version."""
    expected = migrations.files()
    if not expected:
        raise NOT_PACKAGED.found()
    try:
        applied = {row["version"]: row["digest"] for row in await examination.ask("applied_migrations")}
    except (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedFunctionError) as exc:
        # The function itself is a migration's; what is older than it cannot be told from here.
        first = next((v for v, text in expected.items() if "function ingest.applied_migrations()" in text), "")
        raise BEHIND.found(count="some are", first=first) from exc
    except asyncpg.InsufficientPrivilegeError as exc:
        login = await examination.ask_one("describe_login")
        raise UNREADABLE.found(login=login["name"]) from exc
    behind = [version for version in expected if version not in applied]
    if behind:
        raise BEHIND.found(count=f"{len(behind)} {'is' if len(behind) == 1 else 'are'}", first=behind[0])
    newest = max(expected)
    # Other versions may be migrations of the project's own; only newer ones may be ours.
    ahead = [version for version in applied if version not in expected and version > newest]
    if ahead:
        raise AHEAD.found(count=len(ahead), newest=ahead[-1])
    return f"{len(expected)} migrations are applied, the newest is {newest}."


async def unchanged(examination: Examination) -> str:
    """Compare what was applied with what this version has under the same name."""
    expected = migrations.files()
    applied = {row["version"]: row["digest"] for row in await examination.ask("applied_migrations")}
    differing = [v for v, text in expected.items() if v in applied and applied[v] != migrations.digest(text)]
    if differing:
        raise DIFFERING.found(first=differing[0], count=len(differing))
    return "What was applied is what this version has."


async def buckets(examination: Examination) -> str:
    """Look at the watched buckets."""
    found = json.loads((await examination.ask_one("examine"))["found"])["buckets"]
    if not found:
        raise NO_BUCKET.found()
    for bucket in found:
        if not bucket["exists"]:
            raise BUCKET_MISSING.found(bucket=bucket["id"])
        if bucket["public"]:
            raise BUCKET_PUBLIC.found(bucket=bucket["id"])
    examination.buckets = tuple(bucket["id"] for bucket in found)
    return f"Watched and private: {', '.join(examination.buckets)}."


async def trigger(examination: Examination) -> str:
    """Look at the trigger that makes jobs of uploads."""
    rows = await examination.ask("storage_trigger")
    if not rows:
        raise TRIGGER_MISSING.found()
    if rows[0]["enabled"] not in ("O", "A"):  # fires in ordinary sessions, or always
        raise TRIGGER_DISABLED.found()
    return "Uploads make jobs."


async def storage_policies(examination: Examination) -> str:
    """Look at who may do what with objects."""
    rows = await examination.ask("policies_of", "storage", "objects")
    if not rows or not rows[0]["secured"]:
        raise RLS_OFF.found()
    if missing := sorted(_POLICIES.difference(rows[0]["policies"])):
        raise POLICIES_MISSING.found(which=", ".join(missing))
    return "Each tenant's folder is its own."


async def realtime(examination: Examination) -> str:
    """Look at what Realtime may tell whom."""
    rows = await examination.ask("policies_of", "realtime", "messages")
    if not rows or "sluice_receive" not in rows[0]["policies"]:
        raise REALTIME_POLICY.found()
    if "public.jobs" not in [row["name"] for row in await examination.ask("published_tables", "supabase_realtime")]:
        raise NOT_PUBLISHED.found()
    return "People may follow their documents."


async def role(examination: Examination) -> str:
    """Compare what the login may do with what the migrations grant to the worker."""
    login = await examination.ask_one("describe_login")
    many = [name for name in ("superuser", "createrole", "createdb", "replication") if login[name]]
    if not login["superuser"]:  # whoever is one is a member of everything
        many += [f"member of {name}" for name in login["roles"]]
    if many:
        raise RIGHTS_MANY.found(login=login["name"], which=", ".join(many))
    wanted = migrations.rights(WORKER)
    few = [] if login["bypassrls"] else ["BYPASSRLS"]
    few += [f"execute {row['name']}" for row in await examination.ask("refused_functions", sorted(wanted.functions))]
    relations = sorted(wanted.relations)
    columns = [list(column) for column in zip(*relations, strict=True)] or [[], [], []]
    few += [f"{row['privilege']} on {row['name']}" for row in await examination.ask("refused_relations", *columns)]
    if few:
        which = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        raise RIGHTS_FEW.found(login=login["name"], which=which)
    return f"{login['name']} has the rights that the worker needs, and no more."


async def partitions(examination: Examination) -> str:
    """Look for the timeline's partitions of this month and the next."""
    found = await examination.ask_one("event_partitions")
    if missing := [name for name in found["wanted"] if name not in found["names"]]:
        raise PARTITION_MISSING.found(which=" and ".join(missing))
    return "The timeline has its partitions for this month and the next."


async def ignored(examination: Examination) -> str:
    """Count what is in a watched bucket and can never be a document."""
    found = json.loads((await examination.ask_one("examine"))["found"])
    if found["ignored_objects"]:
        raise IGNORED_OBJECTS.found(count=found["ignored_objects"])
    return "Every object can become a document."


async def failures(examination: Examination) -> str:
    """Count what the trigger could not carry over."""
    found = json.loads((await examination.ask_one("examine"))["found"])
    if found["trigger_failures"]:
        raise TRIGGER_FAILURES.found(count=found["trigger_failures"])
    return "Every change of an object reached its document."


async def queue(examination: Examination) -> str:
    """See whether jobs are taken."""
    found = await examination.ask_one("queue_state")
    if found["paused_at"] is not None:
        raise PAUSED.found(since=found["paused_at"])
    if found["waited"] > _STUCK_SECONDS and not found["held"]:
        raise STUCK.found(due=found["due"], minutes=found["waited"] / 60)
    return f"Jobs due: {found['due']}, held: {found['held']}."


async def embedding_model(examination: Examination) -> str:
    """Compare the model of the settings with the one that search uses."""
    settings = examination.settings
    if settings.embedder == "local":
        from worker.pipeline.embed.minilm import MODEL

        ours = (MODEL.provider, MODEL.name, MODEL.dimensions)
    else:
        ours = (settings.embedder, settings.embed_model, settings.embed_dimensions)
    named = dict(zip(("provider", "name", "dimensions"), ours, strict=True))
    rows = await examination.ask("active_model")
    if not rows:
        raise NO_MODEL.found(**named)
    theirs = (rows[0]["provider"], rows[0]["name"], rows[0]["dimensions"])
    if ours != theirs:
        raise OTHER_MODEL.found(ours=_model(*ours), theirs=_model(*theirs), **named)
    return f"Settings and search agree on {_model(*ours)}."


def _model(provider: str, name: str, dimensions: int) -> str:
    return f"{provider}/{name} with {dimensions} dimensions"


_LOGIN, _MIGRATED = ("database_login",), ("database_login", "migrations")
_SEES = ("worker_role",)
"""Under row-level security these would see empty tables."""

CHECKS = (
    Check(
        "extension", "database", "pgvector is where it should be", extension,
        (EXTENSION_MISSING, EXTENSION_ELSEWHERE), needs=_LOGIN,
    ),
    Check(
        "migrations", "database", "The database has this version's migrations", history,
        (BEHIND, AHEAD, UNREADABLE, NOT_PACKAGED), needs=_LOGIN,
    ),
    Check(
        "migrations_unchanged", "database", "They were applied as this version has them", unchanged, (DIFFERING,),
        needs=_MIGRATED,
    ),
    Check(
        "bucket", "database", "The watched buckets exist and are private", buckets,
        (BUCKET_MISSING, NO_BUCKET, BUCKET_PUBLIC), needs=_MIGRATED,
    ),
    Check(
        "storage_trigger", "database", "Uploads make jobs", trigger, (TRIGGER_MISSING, TRIGGER_DISABLED),
        needs=_MIGRATED,
    ),
    Check(
        "storage_policies", "database", "People reach their tenants' objects only", storage_policies,
        (RLS_OFF, POLICIES_MISSING), needs=_MIGRATED,
    ),
    Check(
        "realtime_policies", "database", "People may follow their documents", realtime,
        (REALTIME_POLICY, NOT_PUBLISHED), needs=_MIGRATED,
    ),
    Check(
        "worker_role", "database", "The login has the worker's rights, and no more", role,
        (RIGHTS_FEW, RIGHTS_MANY), needs=_MIGRATED,
    ),
    Check(
        "partitions", "database", "The timeline has its partitions", partitions, (PARTITION_MISSING,),
        needs=_MIGRATED,
    ),
    Check(
        "ignored_objects", "database", "Every object can become a document", ignored, (IGNORED_OBJECTS,),
        needs=_MIGRATED,
    ),
    Check(
        "trigger_failures", "database", "Every change of an object reached its document", failures,
        (TRIGGER_FAILURES,), needs=_MIGRATED,
    ),
    Check("queue", "database", "Jobs are taken", queue, (PAUSED, STUCK), needs=_MIGRATED, unless=_SEES),
    Check(
        "embedding_model", "database", "Settings and search agree on the embedding model", embedding_model,
        (NO_MODEL, OTHER_MODEL), needs=_MIGRATED, unless=_SEES,
    ),
)  # fmt: skip
