-- Privileges on the database itself; `create database … template` copies none of them.

do $$
begin
  execute format('grant all on database %I to postgres', current_database());
end $$;
alter publication supabase_realtime owner to postgres;
