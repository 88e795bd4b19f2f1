// Uploads with the real tus-js-client: one JSON request a line on standard input, one JSON answer a line on standard
// output. Where the connection breaks it goes on by itself, as in a browser.
import { createReadStream } from "node:fs";
import { Agent } from "node:http";
import { DefaultHttpStack, DetailedError, Upload, type UploadOptions } from "tus-js-client";

interface Request {
  path: string;
  options: UploadOptions;
}

interface Answer {
  url: string | null;
  error: { status: number | null; message: string } | null;
}

// When a line that was used before ends after the last byte, Deno's http client asks again on another by itself and
// waits for ever. Node's does not; with a line for every request neither does.
const httpStack = new DefaultHttpStack({ agent: new Agent({ keepAlive: false }) });

function run({ path, options }: Request): Promise<Answer> {
  return new Promise((resolve) => {
    const upload: Upload = new Upload(createReadStream(path), {
      httpStack,
      ...options,
      onSuccess: () => resolve({ url: upload.url, error: null }),
      onError: (thrown) => {
        const said = thrown instanceof DetailedError ? thrown.originalResponse : null;
        const error = { status: said?.getStatus() ?? null, message: said?.getBody() || thrown.message };
        resolve({ url: upload.url, error });
      },
    });
    upload.start();
  });
}

const lines = Deno.stdin.readable.pipeThrough(new TextDecoderStream());
let rest = "";
for await (const text of lines) {
  const parts = (rest + text).split("\n");
  rest = parts.pop() ?? "";
  for (const line of parts) {
    const answer = await run(JSON.parse(line));
    await Deno.stdout.write(new TextEncoder().encode(JSON.stringify(answer) + "\n"));
  }
}
