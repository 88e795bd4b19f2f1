-- Two schemas. `public` is what clients may see through the Data API; `ingest` is internal: it is
-- not exposed, and USAGE is granted only to those who must name its objects at run time.
--
-- Sluice shares the project with other people's tables, so it never changes default privileges:
-- every table and function here is revoked and granted by name (see the grants file).

create schema if not exists ingest;
revoke all on schema ingest from public;

create extension if not exists vector with schema extensions;
