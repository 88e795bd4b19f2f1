"""Who may do what, read from the catalogue in the shape of grants.toml: every grantee but the owner."""

from __future__ import annotations

from typing import Any

import asyncpg

Matrix = dict[str, dict[str, Any]]

_OURS = "n.nspname in ('public', 'ingest')"
# Extensions bring functions of their own; none of ours belongs to one.
_NOT_AN_EXTENSIONS = "not exists (select from pg_depend e where e.objid = {0}.oid and e.deptype = 'e')"

_FUNCTIONS = f"""
select n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' as name,
       p.prosecdef as definer, pg_get_userbyid(p.proowner) as owner, p.proconfig as settings,
       (select coalesce(array_agg(distinct case a.grantee when 0 then 'PUBLIC'
                                               else pg_get_userbyid(a.grantee)::text end), '{{}}')
          from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee <> p.proowner) as grantees
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace
 where {_OURS} and {_NOT_AN_EXTENSIONS.format("p")}
 order by 1
"""

# Tables, partitions, sequences; a column's grant as "update(created_at)".
_RELATIONS = f"""
select n.nspname || '.' || c.relname as name, c.relkind::text as kind, c.relrowsecurity as secured,
       c.relispartition as partition, c.reloptions as options, pg_get_userbyid(c.relowner) as owner,
       g.grantee, g.privileges
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  left join lateral (
    select case when a.grantee = 0 then 'PUBLIC' else pg_get_userbyid(a.grantee)::text end as grantee,
           array_agg(distinct lower(a.privilege_type) || coalesce('(' || a.attname || ')', '')) as privileges
      from (select grantee, privilege_type, null::name as attname
              from aclexplode(coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char",
                                                            c.relowner)))
            union all
            select x.grantee, x.privilege_type, t.attname from pg_attribute t cross join aclexplode(t.attacl) x
             where t.attrelid = c.oid) a
     where a.grantee <> c.relowner group by 1) g on true
 where {_OURS} and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f') and {_NOT_AN_EXTENSIONS.format("c")}
 order by 1, 6
"""


async def functions(connection: asyncpg.Connection) -> Matrix:
    """Return every function: whether it is a definer, and who may execute it."""
    return {
        row["name"]: {
            "definer": row["definer"],
            "owner": row["owner"],
            "settings": row["settings"] or [],
            "execute": sorted(row["grantees"]),
        }
        for row in await connection.fetch(_FUNCTIONS)
    }


async def relations(connection: asyncpg.Connection) -> Matrix:
    """Return every table and sequence: whether RLS is on, and each grantee's privileges."""
    found: Matrix = {}
    for row in await connection.fetch(_RELATIONS):
        about = found.setdefault(
            row["name"],
            {
                "kind": row["kind"],
                "secured": row["secured"],
                "owner": row["owner"],
                "partition": row["partition"],
                "options": row["options"] or [],
                "grants": {},
            },
        )
        if row["grantee"]:
            about["grants"][row["grantee"]] = sorted(row["privileges"])
    return found
