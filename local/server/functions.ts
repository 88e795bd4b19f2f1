// Edge functions, all in this process: while `index.ts` of each is imported, Deno.serve only notes the handler.
// The functions stay as they are deployed.

type Handler = (request: Request) => Response | Promise<Response>;

/** Imports every folder of `directory` that has an index.ts (names beginning with "_" are shared code). */
export async function loadFunctions(directory: string): Promise<Map<string, Handler>> {
  const handlers = new Map<string, Handler>();
  const names = await functionNames(directory);
  const serve = Deno.serve;
  try {
    for (const name of names) {
      let captured: Handler | undefined;
      const capture = (...given: unknown[]) => {
        captured = given.find((argument): argument is Handler => typeof argument === "function") ??
          (given[0] as { handler?: Handler } | undefined)?.handler;
        return { finished: new Promise<void>(() => {}), shutdown: () => Promise.resolve() };
      };
      Object.defineProperty(Deno, "serve", { value: capture, configurable: true, writable: true });
      await import(`file://${directory}/${name}/index.ts`);
      if (!captured) throw new Error(`supabase/functions/${name}/index.ts does not call Deno.serve`);
      handlers.set(name, captured);
    }
  } finally {
    Object.defineProperty(Deno, "serve", { value: serve, configurable: true, writable: true });
  }
  return handlers;
}

/** Answers `/functions/v1/<name>`; 404 where there is no such function. */
export async function callFunction(handlers: Map<string, Handler>, request: Request): Promise<Response> {
  const name = new URL(request.url).pathname.split("/")[3] ?? "";
  const handler = handlers.get(name);
  if (!handler) {
    const known = [...handlers.keys()].join(", ") || "none";
    return Response.json(
      { code: "NOT_FOUND", message: `There is no function of that name here (there is: ${known}).` },
      {
        status: 404,
      },
    );
  }
  return await handler(request);
}

async function functionNames(directory: string): Promise<string[]> {
  const names: string[] = [];
  try {
    for await (const entry of Deno.readDir(directory)) {
      if (!entry.isDirectory || entry.name.startsWith("_")) continue;
      try {
        await Deno.stat(`${directory}/${entry.name}/index.ts`);
        names.push(entry.name);
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
      }
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return names.sort();
}
