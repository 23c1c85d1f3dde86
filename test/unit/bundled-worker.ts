/** Runs a TypeScript module as a worker thread: Node 20 cannot load one by itself. */

import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { build } from "esbuild";

/** The module at `url` and what it imports of ours, as one script for `runWorker`. */
export async function bundleWorker(url: URL): Promise<string> {
  const result = await build({
    entryPoints: [fileURLToPath(url)],
    bundle: true,
    write: false,
    platform: "node",
    format: "cjs",
    target: "node20",
    packages: "external",
    // Where packages are looked for from.
    define: { "import.meta.url": JSON.stringify(url.href) },
    logLevel: "silent",
  });
  const [file] = result.outputFiles;
  if (file === undefined) throw new Error(`esbuild made nothing of ${url.href}`);
  return file.text;
}

/** Runs the script in a thread of its own; resolves with the last message that it posts. */
export function runWorker(script: string, workerData: unknown): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(script, { eval: true, workerData });
    let message: unknown;
    worker.on("message", (value: unknown) => {
      message = value;
    });
    worker.on("error", reject);
    worker.on("exit", () => resolve(message));
  });
}
