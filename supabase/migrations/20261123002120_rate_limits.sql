-- Limits of providers: a token bucket for each key of theirs, shared by all workers, on the database's
-- clock. The row's lock puts takers in line for microseconds and is the last that anything takes.
--
-- A bucket holds ten seconds' worth, but at least one request: a full minute's worth would let twice
-- the limit through in the first minute, and providers count shorter spans than that. What is larger
-- than the bucket is granted when it is full and leaves it in debt, so nothing waits for ever.

create table ingest.rate_limits (
  provider             text not null check (char_length(provider) between 1 and 64),
  key_name             text not null default 'default' check (char_length(key_name) between 1 and 64),   -- a name or a digest, never the key
  requests_per_minute  integer check (requests_per_minute > 0),   -- null: no limit that we know
  tokens_per_minute    integer check (tokens_per_minute > 0),
  requests_left        double precision not null default 0,
  tokens_left          double precision not null default 0,       -- below zero: in debt
  refilled_at          timestamptz not null default clock_timestamp(),
  blocked_until        timestamptz,
  primary key (provider, key_name)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
comment on table ingest.rate_limits is 'What each provider lets one key do a minute, and what is left of it now.';
alter table ingest.rate_limits enable row level security;

-- What a bucket holds at most, for a limit a minute; null without a limit.
create function ingest.bucket_size(p_per_minute integer)
returns double precision language sql immutable set search_path = ''
return greatest(1, p_per_minute / 6.0::double precision);

-- Set the limits of a provider's key; null for none. A new bucket is full.
create function ingest.configure_rate_limit(p_provider text, p_requests_per_minute integer, p_tokens_per_minute integer, p_key text default 'default')
returns void language sql set search_path = '' as $$
  insert into ingest.rate_limits as l (provider, key_name, requests_per_minute, tokens_per_minute, requests_left, tokens_left)
  values (p_provider, p_key, p_requests_per_minute, p_tokens_per_minute,
          coalesce(ingest.bucket_size(p_requests_per_minute), 0), coalesce(ingest.bucket_size(p_tokens_per_minute), 0))
  on conflict (provider, key_name) do update
     set requests_per_minute = excluded.requests_per_minute, tokens_per_minute = excluded.tokens_per_minute,
         requests_left = case when l.requests_per_minute is null then excluded.requests_left
                              else least(l.requests_left, excluded.requests_left) end,
         tokens_left = case when l.tokens_per_minute is null then excluded.tokens_left
                            else least(l.tokens_left, excluded.tokens_left) end
$$;

-- Take so many requests and tokens: zero when they were granted, else how long to wait before asking
-- again; nothing is taken then. A key without a row has no limits.
create function ingest.take_tokens(p_provider text, p_requests integer default 1, p_tokens integer default 0, p_key text default 'default')
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
  v_tokens := least(ingest.bucket_size(v_limit.tokens_per_minute), v_limit.tokens_left + v_seconds * v_limit.tokens_per_minute / 60);
  if v_limit.requests_per_minute is not null and p_requests > 0 then
    v_wait := greatest(v_wait, 60 * (least(p_requests, ingest.bucket_size(v_limit.requests_per_minute)) - v_requests) / v_limit.requests_per_minute);
  end if;
  if v_limit.tokens_per_minute is not null and p_tokens > 0 then
    v_wait := greatest(v_wait, 60 * (least(p_tokens, ingest.bucket_size(v_limit.tokens_per_minute)) - v_tokens) / v_limit.tokens_per_minute);
  end if;
  -- Rounded up to a millisecond: a shorter wait would be asked in vain.
  if v_wait > 0 then return pg_catalog.make_interval(secs => pg_catalog.ceil(v_wait * 1000) / 1000); end if;

  update ingest.rate_limits l
     set requests_left = coalesce(v_requests - p_requests, 0), tokens_left = coalesce(v_tokens - p_tokens, 0), refilled_at = v_now
   where l.provider = p_provider and l.key_name = p_key;
  return interval '0';
end $$;

-- Nobody asks this provider with this key for so long: it said so (Retry-After). A longer block that
-- stands already stays. An interval, because only the database's clock is stored; an hour at most,
-- because what a server claims is not to stop the work for days.
create function ingest.block_provider(p_provider text, p_for interval, p_key text default 'default')
returns void language sql set search_path = '' as $$
  insert into ingest.rate_limits as l (provider, key_name, blocked_until)
  values (p_provider, p_key, pg_catalog.clock_timestamp() + greatest(interval '0', least(p_for, interval '1 hour')))
  on conflict (provider, key_name) do update set blocked_until = greatest(l.blocked_until, excluded.blocked_until)
$$;
