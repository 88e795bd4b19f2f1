-- A bucket of tokens holds a minute's worth, as the provider's own does: one that held ten seconds' left five sixths of
-- what a key may send at once unused, and a load of 1.7 minutes' worth took 2.1 times the ideal. Requests stay at ten
-- seconds' worth: providers count those over shorter windows too.

create or replace function ingest.configure_rate_limit(p_provider text, p_requests_per_minute integer, p_tokens_per_minute integer, p_key text default 'default')
returns void language sql set search_path = '' as $$
  insert into ingest.rate_limits as l (provider, key_name, requests_per_minute, tokens_per_minute, requests_left, tokens_left)
  values (p_provider, p_key, p_requests_per_minute, p_tokens_per_minute,
          coalesce(ingest.bucket_size(p_requests_per_minute), 0), coalesce(p_tokens_per_minute, 0))
  on conflict (provider, key_name) do update
     set requests_per_minute = excluded.requests_per_minute, tokens_per_minute = excluded.tokens_per_minute,
         requests_left = case when l.requests_per_minute is null then excluded.requests_left
                              else least(l.requests_left, excluded.requests_left) end,
         tokens_left = case when l.tokens_per_minute is null then excluded.tokens_left
                            else least(l.tokens_left, excluded.tokens_left) end
$$;

create or replace function ingest.take_tokens(p_provider text, p_requests integer default 1, p_tokens integer default 0, p_key text default 'default')
returns interval language plpgsql set search_path = '' as $$
declare
  v_limit     ingest.rate_limits;
  v_now       timestamptz;
  v_seconds   double precision;
  v_requests  double precision;
  v_tokens    double precision;
  v_wait      double precision := 0;
begin
  if (p_requests >= 0 and p_tokens >= 0) is not true then
    raise exception 'take_tokens: % requests or % tokens is out of range', p_requests, p_tokens using errcode = '22023';
  end if;
  select * into v_limit from ingest.rate_limits l where l.provider = p_provider and l.key_name = p_key for no key update;
  if not found then return interval '0'; end if;
  v_now := pg_catalog.clock_timestamp();                   -- after the lock: those before us took time
  if v_limit.blocked_until > v_now then return v_limit.blocked_until - v_now; end if;

  v_seconds := greatest(0, extract(epoch from v_now - v_limit.refilled_at));
  v_requests := least(ingest.bucket_size(v_limit.requests_per_minute), v_limit.requests_left + v_seconds * v_limit.requests_per_minute / 60);
  v_tokens := least(v_limit.tokens_per_minute, v_limit.tokens_left + v_seconds * v_limit.tokens_per_minute / 60);
  if v_limit.requests_per_minute is not null and p_requests > 0 then
    v_wait := greatest(v_wait, 60 * (least(p_requests, ingest.bucket_size(v_limit.requests_per_minute)) - v_requests) / v_limit.requests_per_minute);
  end if;
  if v_limit.tokens_per_minute is not null and p_tokens > 0 then
    v_wait := greatest(v_wait, 60 * (least(p_tokens, v_limit.tokens_per_minute) - v_tokens) / v_limit.tokens_per_minute);
  end if;
  -- Rounded up to a millisecond: a shorter wait would be asked in vain.
  if v_wait > 0 then return pg_catalog.make_interval(secs => pg_catalog.ceil(v_wait * 1000) / 1000); end if;

  update ingest.rate_limits l
     set requests_left = coalesce(v_requests - p_requests, 0), tokens_left = coalesce(v_tokens - p_tokens, 0), refilled_at = v_now
   where l.provider = p_provider and l.key_name = p_key;
  return interval '0';
end $$;
