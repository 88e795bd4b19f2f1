-- What providers charge. The price that was valid when something was spent is the one that counts:
-- a new price is a new row, and what was written before it keeps its money.

create table ingest.prices (
  provider          text not null check (char_length(provider) between 1 and 64),
  model             text not null check (char_length(model) between 1 and 200),   -- a model or a parser's tier; '*': any without rows of its own
  unit              text not null check (unit in ('page', 'token', 'credit')),
  usd_per_million   numeric not null check (usd_per_million >= 0),                -- of these units
  credits_per_page  numeric check (credits_per_page >= 0),                        -- providers of credits charge pages by them
  valid_from        timestamptz not null default clock_timestamp(),
  primary key (provider, model, unit, valid_from),
  constraint credits_have_a_rate check ((unit = 'credit') = (credits_per_page is not null))
);
comment on table ingest.prices is 'What a provider charges for a million pages, tokens or credits of a model, from when on.';
alter table ingest.prices enable row level security;

-- What this costs in USD at that moment; null where nothing that was spent has a price. Pages are
-- charged by the page or by credits, tokens by the token, and a model that has both kinds by both.
create function ingest.price_of(p_provider text, p_model text, p_pages bigint, p_tokens bigint, p_at timestamptz)
returns numeric language sql stable set search_path = '' as $$
  with valid as (
    select distinct on (p.model, p.unit) p.*
      from ingest.prices p
     where p.provider = p_provider and p.valid_from <= p_at
       and p.model = case when exists (select 1 from ingest.prices o where o.provider = p_provider and o.model = p_model and o.valid_from <= p_at)
                          then p_model else '*' end
     order by p.model, p.unit, p.valid_from desc
  ), charged as (
    select v.usd_per_million * case v.unit when 'token' then p_tokens when 'page' then p_pages
                                           else p_pages * v.credits_per_page end as millionths
      from valid v
     where case v.unit when 'token' then p_tokens > 0 else p_pages > 0 end
  )
  select case when p_pages = 0 and p_tokens = 0 then 0 else (select pg_catalog.sum(c.millionths) * 0.000001 from charged c) end
$$;

-- Set a price from now on. Whatever was missing it is told so: its alert is resolved.
create function ingest.set_price(
  p_provider text, p_model text, p_unit text, p_usd_per_million numeric, p_credits_per_page numeric default null
)
returns void language plpgsql set search_path = '' as $$
begin
  insert into ingest.prices (provider, model, unit, usd_per_million, credits_per_page)
  values (p_provider, p_model, p_unit, p_usd_per_million, p_credits_per_page);
  perform ingest.resolve_alert('price_missing', p_provider || '/' || p_model);
end $$;

-- List prices of November 2026. Whoever pays others says so with set_price.
insert into ingest.prices (provider, model, unit, usd_per_million, credits_per_page, valid_from)
select p.provider, p.model, p.unit, p.usd, p.credits, '-infinity' from (values
  ('openai',      'text-embedding-3-small', 'token',  0.02,    null::numeric),
  ('openai',      'text-embedding-3-large', 'token',  0.13,    null),
  ('llama-parse', 'fast',                   'credit', 1250.00, 1),
  ('llama-parse', 'cost_effective',         'credit', 1250.00, 3),
  ('llama-parse', 'agentic',                'credit', 1250.00, 10),
  ('llama-parse', 'agentic_plus',           'credit', 1250.00, 45),
  ('llama-cloud', 'fast',                   'credit', 1250.00, 1),
  ('llama-cloud', 'cost_effective',         'credit', 1250.00, 3),
  ('llama-cloud', 'agentic',                'credit', 1250.00, 10),
  ('llama-cloud', 'agentic_plus',           'credit', 1250.00, 45),
  ('local',       '*',                      'page',   0,       null),
  ('local',       '*',                      'token',  0,       null)
) as p(provider, model, unit, usd, credits);

revoke all on ingest.prices from anon, authenticated, service_role;
revoke execute on function
  ingest.price_of(text, text, bigint, bigint, timestamptz),
  ingest.set_price(text, text, text, numeric, numeric)
  from public, anon, authenticated, service_role;
grant select on ingest.prices to ingest_worker;
grant execute on function ingest.price_of(text, text, bigint, bigint, timestamptz) to ingest_worker;
