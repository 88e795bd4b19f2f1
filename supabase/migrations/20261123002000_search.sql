-- Search: a vector list and a full-text list, exact per tenant, fused by reciprocal rank.

-- The best matches of a text query in the caller's tenants.
--
-- Definer, because under RLS the GIN index is not used: @@ is not leakproof, so the policy would run
-- first (100,000 chunks: 51 ms against 2.2 ms). The tenants are therefore named here, and narrowed
-- by the caller's wish, never widened. Of a very common word p_cap chunks are ranked, not all.
--
-- Planned for its values: with the tenants in an array that it knows, the plan is the tenant's and
-- the words' index together; with a subquery it believed in ten tenants and read rows to filter them.
create function ingest.text_hits(p_query tsquery, p_tenants uuid[], p_documents uuid[], p_limit integer, p_cap integer)
returns table (chunk_id bigint, rank integer) language plpgsql stable security definer rows 50
set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
  v_tenants  uuid[] := array(select t from ingest.my_tenants('reader') t where p_tenants is null or t = any (p_tenants));
begin
  return query
  with matches as (
    -- Numbered, where a limit would make the planner hope to meet p_cap matches soon without the index of words.
    select c.id, c.fts, pg_catalog.row_number() over () as number from public.chunks c
     where c.fts operator(pg_catalog.@@) p_query and c.tenant_id = any (v_tenants)
       and (p_documents is null or c.document_id = any (p_documents))
  ), best as (
    select m.id, pg_catalog.ts_rank_cd(m.fts, p_query) as weight from matches m where m.number <= p_cap
     order by 2 desc, 1 limit p_limit
  )
  select b.id, pg_catalog.row_number() over (order by b.weight desc, b.id)::integer from best b;
end $$;

-- Refuse a query vector that cannot be compared, in words; return it at unit length. Magnitude means
-- nothing to a cosine, and a half-precision number overflows at 65,504.
create function ingest.query_vector(p_embedding real[], p_model text, p_dimensions integer)
returns extensions.halfvec language plpgsql immutable set search_path = '' as $$
begin
  if p_embedding is null then
    raise exception 'query_embedding is null' using errcode = '22023',
      hint = 'Embed the query with the model ' || p_model || ' and pass its ' || p_dimensions || ' numbers.';
  end if;
  if pg_catalog.array_ndims(p_embedding) is distinct from 1 or pg_catalog.cardinality(p_embedding) <> p_dimensions then
    raise exception 'query_embedding has % dimensions, the active model % has %', pg_catalog.cardinality(p_embedding), p_model, p_dimensions
      using errcode = '22023', hint = 'Embed the query with the model that embedded the documents.';
  end if;
  if pg_catalog.array_position(p_embedding, null) is not null
     or 'NaN'::real = any (p_embedding) or 'Infinity'::real = any (p_embedding) or '-Infinity'::real = any (p_embedding) then
    raise exception 'query_embedding holds a null, a NaN or an infinity' using errcode = '22023',
      hint = 'Every one of its numbers must be finite.';
  end if;
  if 0 = all (p_embedding) then
    raise exception 'query_embedding is zero' using errcode = '22023', hint = 'A vector without a direction is near to nothing: embed the query again.';
  end if;
  -- By the greatest number first: the norm of a finite vector may itself overflow or vanish.
  return extensions.l2_normalize((select pg_catalog.array_agg(x / m.greatest order by i)
    from (select pg_catalog.max(pg_catalog.abs(a)) as greatest from pg_catalog.unnest(p_embedding) a) m,
         pg_catalog.unnest(p_embedding) with ordinality u(x, i))::extensions.vector)::extensions.halfvec;
end $$;

-- What one query may ask for besides its words: filters, read strictly, so that a misspelt one does
-- not silently widen the search.
create function ingest.search_filters(p_filters jsonb)
returns table (tenants uuid[], documents uuid[], name_prefix text, mime_types text[], language text)
language plpgsql immutable set search_path = '' as $$
declare
  v_unknown text;
begin
  if p_filters is null or p_filters = '{}' then
    return query select null::uuid[], null::uuid[], null::text, null::text[], null::text;
    return;
  end if;
  if pg_catalog.jsonb_typeof(p_filters) <> 'object' then
    raise exception 'filters must be a JSON object' using errcode = '22023';
  end if;
  select k into v_unknown from pg_catalog.jsonb_object_keys(p_filters) k
   where k not in ('tenant_ids', 'document_ids', 'name_prefix', 'mime_types', 'language') limit 1;
  if found then
    raise exception 'There is no filter %.', v_unknown using errcode = '22023',
      hint = 'The filters are tenant_ids, document_ids, name_prefix, mime_types and language.';
  end if;
  if exists (select 1 from pg_catalog.jsonb_each(p_filters) f
              where case when f.key in ('tenant_ids', 'document_ids', 'mime_types')
                         then pg_catalog.jsonb_typeof(f.value) <> 'array' or pg_catalog.jsonb_array_length(f.value) > 1000
                         else pg_catalog.jsonb_typeof(f.value) <> 'string' end) then
    raise exception 'A filter has the wrong type.' using errcode = '22023',
      hint = 'tenant_ids, document_ids and mime_types are arrays of up to 1000 strings; name_prefix and language are strings.';
  end if;
  if p_filters ->> 'language' not in ('simple', 'danish', 'dutch', 'english', 'finnish', 'french', 'german', 'italian',
                                      'norwegian', 'portuguese', 'russian', 'spanish', 'swedish') then
    raise exception 'There is no text search language %.', p_filters ->> 'language' using errcode = '22023';
  end if;
  -- A filter that is absent is null and narrows nothing; an empty one matches nothing.
  return query select
    case when p_filters ? 'tenant_ids' then (select coalesce(pg_catalog.array_agg(v::uuid), '{}') from pg_catalog.jsonb_array_elements_text(p_filters -> 'tenant_ids') v) end,
    case when p_filters ? 'document_ids' then (select coalesce(pg_catalog.array_agg(v::uuid), '{}') from pg_catalog.jsonb_array_elements_text(p_filters -> 'document_ids') v) end,
    p_filters ->> 'name_prefix',
    case when p_filters ? 'mime_types' then (select coalesce(pg_catalog.array_agg(v), '{}') from pg_catalog.jsonb_array_elements_text(p_filters -> 'mime_types') v) end,
    p_filters ->> 'language';
exception when invalid_text_representation then
  raise exception 'A filter holds an id that is not a UUID.' using errcode = '22023';
end $$;

-- Find chunks by meaning and by words. Runs as its caller, who sees what RLS lets them see.
create function public.search(
  query            text,
  query_embedding  real[] default null,                    -- of the active model; real[], as PostgREST and supabase-js send it
  match_count      integer default 10,
  filters          jsonb default '{}'
)
returns table (
  document_id uuid, document_name text, document_title text, chunk_id bigint, ordinal integer,
  page_start integer, page_end integer, heading_path text[], content text, char_start integer, char_end integer,
  score double precision, vector_rank integer, text_rank integer, similarity double precision, stale boolean
)
-- A document's vectors lie together: by bitmap each page is read once (10,000 vectors: 1,343 buffers,
-- 5.8 ms), where the index scan that the planner prefers goes back and forth (10,215 buffers, 8.5 ms).
language plpgsql stable security invoker
set search_path = '' set plan_cache_mode = force_custom_plan set enable_indexscan = off as $$
#variable_conflict use_column
declare
  v_model       smallint;
  v_vector      extensions.halfvec;
  v_tenants     uuid[];
  v_documents   uuid[];
  v_filters     record;
  v_tsquery     tsquery;
  v_depth       integer := greatest(50, match_count);
  v_read        integer := 4 * v_depth;
  v_near        bigint[];
  v_distances   double precision[];
  v_exact       boolean := false;
  v_name        text;
  v_dimensions  integer;
begin
  if match_count is null or match_count not between 1 and 100 then
    raise exception 'match_count is %, it must be between 1 and 100', match_count using errcode = '22023',
      hint = 'Ask for fewer matches; narrow the search with filters instead.';
  end if;
  if pg_catalog.char_length(query) > 4000 then
    raise exception 'query has % characters, at most 4000 are allowed', pg_catalog.char_length(query) using errcode = '22023';
  end if;
  select m.id, m.name, m.dimensions into v_model, v_name, v_dimensions from ingest.embedding_models m where m.active;
  if not found then
    raise exception 'No embedding model is active.' using errcode = 'IG006', hint = 'An operator activates one: ingest.activate_embedding_model.';
  end if;
  v_vector := ingest.query_vector(query_embedding, v_name, v_dimensions);
  select * into v_filters from ingest.search_filters(filters);
  if query is null or query !~ '\S' then return; end if;

  select pg_catalog.array_agg(t) into v_tenants from ingest.my_tenants('reader') t
   where v_filters.tenants is null or t = any (v_filters.tenants);
  if v_tenants is null then return; end if;
  if v_filters.documents is not null or v_filters.name_prefix is not null or v_filters.mime_types is not null then
    select coalesce(pg_catalog.array_agg(d.id), '{}') into v_documents from public.documents d
     where d.tenant_id = any (v_tenants)
       and (v_filters.documents is null or d.id = any (v_filters.documents))
       and (v_filters.name_prefix is null or pg_catalog.starts_with(d.name, v_filters.name_prefix))
       and (v_filters.mime_types is null or d.mime_type = any (v_filters.mime_types));
  end if;

  -- The words in each language that the caller's tenants use, unless one is named.
  select ingest.query_words(query, pg_catalog.array_agg(distinct coalesce(v_filters.language, t.language))) into v_tsquery
    from public.tenants t where t.id = any (v_tenants);

  -- The nearest vectors first, then the chunks that hold them: a join of all would read every chunk of
  -- the tenants (10,000: 31 ms against 9; 100,000: 1 s against 85 ms). It is exact where the last chunk
  -- taken is nearer than the last vector read; vectors without a chunk (after an overwrite, for a day)
  -- and a filter may leave too few, so it reads further once. Of few documents the join reads little.
  --
  -- `+ 0` keeps an approximate index out, whoever may have made one: its recall is not 1.
  while not v_exact and v_read <= 64 * v_depth and (v_documents is null or pg_catalog.cardinality(v_documents) > 20) loop
    with vectors as materialized (
      select e.tenant_id, e.content_sha256, (e.embedding operator(extensions.<=>) v_vector) + 0 as distance
        from ingest.embeddings e where e.model_id = v_model and e.tenant_id = any (v_tenants)
       order by 3 limit v_read
    ), near as (
      select c.id, v.distance from vectors v join public.chunks c on c.tenant_id = v.tenant_id and c.content_sha256 = v.content_sha256
       where v_documents is null or c.document_id = any (v_documents)
       order by v.distance, c.id limit v_depth
    )
    select pg_catalog.array_agg(n.id order by n.distance, n.id), pg_catalog.array_agg(n.distance order by n.distance, n.id),
           (select pg_catalog.count(*) < v_read from vectors)
           or pg_catalog.count(*) = v_depth and pg_catalog.max(n.distance) < (select pg_catalog.max(v.distance) from vectors v)
      into v_near, v_distances, v_exact from near n;
    v_read := 16 * v_read;
  end loop;
  if not v_exact then
    select pg_catalog.array_agg(n.id order by n.distance, n.id), pg_catalog.array_agg(n.distance order by n.distance, n.id)
      into v_near, v_distances from (
      select c.id, (e.embedding operator(extensions.<=>) v_vector) + 0 as distance
        from ingest.embeddings e join public.chunks c on c.tenant_id = e.tenant_id and c.content_sha256 = e.content_sha256
       where e.model_id = v_model and e.tenant_id = any (v_tenants)
         and (v_documents is null or c.document_id = any (v_documents))
       order by 2, 1 limit v_depth) n;
  end if;

  return query
  with by_vector as (
    select u.id, u.distance, u.rank::integer from unnest(v_near, v_distances) with ordinality u(id, distance, rank)
  ), by_text as (
    select h.chunk_id as id, h.rank from ingest.text_hits(v_tsquery, v_tenants, v_documents, v_depth, 5000) h where v_tsquery is not null
  ), fused as (
    -- Reciprocal rank fusion with k = 60 (Cormack, Clarke and Büttcher, SIGIR 2009).
    select coalesce(v.id, t.id) as id, coalesce(1.0 / (60 + v.rank), 0) + coalesce(1.0 / (60 + t.rank), 0) as score,
           v.rank as vector_rank, t.rank as text_rank, 1 - v.distance as similarity
      from by_vector v full join by_text t on t.id = v.id
     order by 2 desc, coalesce(v.rank, 1000000), coalesce(t.rank, 1000000) limit match_count
  )
  select c.document_id, d.name, d.title, c.id, c.ordinal, c.page_start, c.page_end, c.heading_path, c.content, c.char_start, c.char_end,
         f.score::double precision, f.vector_rank, f.text_rank, f.similarity::double precision, d.generation <> d.published_generation
    from fused f join public.chunks c on c.id = f.id join public.documents d on d.id = c.document_id
   order by f.score desc, coalesce(f.vector_rank, 1000000), coalesce(f.text_rank, 1000000);
end $$;
comment on function public.search is 'Finds the caller''s chunks by meaning (query_embedding) and by words (query); cite document, pages and [char_start, char_end).';

-- The words of a query in each of these languages, any of which may match; null when there are none.
--
-- More than 31 minus signs in a row (a line of dashes) are an internal error of websearch_to_tsquery:
-- such a query is read as plain words.
create function ingest.query_words(p_query text, p_languages text[])
returns tsquery language plpgsql immutable set search_path = '' as $$
declare
  v_language  text;
  v_words     tsquery;
  v_any       tsquery;
begin
  foreach v_language in array coalesce(p_languages, '{}') loop   -- a user whose tenant is not made yet has none
    begin
      v_words := pg_catalog.websearch_to_tsquery(ingest.text_config(v_language), p_query);
    exception when internal_error then
      v_words := pg_catalog.plainto_tsquery(ingest.text_config(v_language), p_query);
    end;
    if pg_catalog.numnode(v_words) > 0 then
      v_any := coalesce(v_any operator(pg_catalog.||) v_words, v_words);
    end if;
  end loop;
  return v_any;
end $$;
