/**
 * `npm run bench`: tsimgfs against qemu-storage-daemon's FUSE export, and on a raw file against a C
 * server, in one run.
 * The Markdown table goes to stdout, what is being done to stderr. Nothing asserts a figure: the
 * table marks what is short of its aim.
 */

import { cpus, release } from "node:os";
import { resolve } from "node:path";
import { CleanupStack, errorText } from "./cleanup-stack.ts";
import { type KindName, type Options, parseOptions, USAGE } from "./options.ts";
import { renderReport } from "./report.ts";
import { findRawfuse, isTmpfs, makeDirectory, requirePrograms } from "./requirements.ts";
import { run } from "./run-command.ts";
import { measureAllReads, measureAllWrites, measureSlowReads, SLOW_FACTS } from "./setting.ts";

const TMPFS = "/dev/shm";

process.exitCode = await main(process.argv.slice(2));

async function main(args: string[]): Promise<number> {
  const interrupt = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => interrupt.abort(new Error(`ended by ${signal}, cleaning up`)));
  }
  const cleanup = new CleanupStack();
  try {
    const options = parseOptions(args);
    if (options === undefined) {
      process.stdout.write(USAGE);
      return 0;
    }
    process.stdout.write(await benchmark(options, cleanup, interrupt.signal));
    return 0;
  } catch (error) {
    process.stderr.write(`bench: ${errorText(error)}\n`);
    return interrupt.signal.aborted ? 130 : 1;
  } finally {
    await cleanup.unwind();
  }
}

/** The report. What it leaves behind is on `cleanup`. */
async function benchmark(
  options: Options,
  cleanup: CleanupStack,
  signal: AbortSignal,
): Promise<string> {
  const started = Date.now();
  const progress = (text: string): void => {
    process.stderr.write(`[${Math.round((Date.now() - started) / 1000)} s] ${text}\n`);
  };
  const facts: string[] = [];
  const note = (text: string): void => {
    facts.push(text);
    progress(text);
  };

  await requirePrograms(options);
  const directory = await makeDirectory(resolve(options.directory), cleanup);
  const tmpfs = (await isTmpfs(TMPFS)) ? TMPFS : undefined;
  if (tmpfs === undefined)
    note(`no tmpfs at ${TMPFS}: cp and **all writes go to ${directory}, which is measured too**`);
  const tmpfsDirectory = tmpfs === undefined ? directory : await makeDirectory(tmpfs, cleanup);
  const rawfuse = await findRawfuse(options, directory, signal, note);

  const setting = { options, directory, tmpfsDirectory, rawfuse, signal, progress, note };
  const results = [
    ...(options.kinds.includes("read") ? await measureAllReads(setting) : []),
    ...(options.kinds.some(writes) ? await measureAllWrites(setting) : []),
    ...(options.kinds.includes("slow") ? await measureSlowReads(setting, cleanup) : []),
  ];
  if (results.length === 0)
    throw new Error("nothing to measure: no server is there for the images and cells chosen");
  const elapsedS = Math.round((Date.now() - started) / 1000);
  return renderReport(
    {
      title: "tsimgfs benchmark",
      facts: [...machineFacts(options, elapsedS), ...facts],
      serverTitles: {
        tsimgfs: "tsimgfs",
        "fuse-native": "tsimgfs, fuse-native",
        qsd: `QSD ${await qemuVersion(options)}`.trim(),
        c: "C server",
      },
    },
    results,
  );
}

function machineFacts(
  { rounds, seconds, sizeMib, threads, kinds }: Options,
  elapsedS: number,
): string[] {
  return [
    `${cpus().length} CPUs, kernel ${release()}, Node ${process.versions.node}, ${elapsedS} s in all`,
    `medians (and ranges) of ${rounds} interleaved rounds, ${seconds} s per fio cell; images of ${sizeMib} MiB in the page cache`,
    ...(kinds.some(writes) ? writeFacts() : []),
    ...(kinds.includes("slow") ? SLOW_FACTS : []),
    `tsimgfs with ${threads === undefined ? "its default number of" : threads} I/O threads`,
    "differences under 15 % mean nothing; unpinned QD1 is a wake-up lottery: look at its range",
  ];
}

function writes(kind: KindName): boolean {
  return kind === "write" || kind === "copy";
}

function writeFacts(): string[] {
  return [
    "written images: made anew on tmpfs for each sample, and a new server, warmed up on what is not measured; the image is clean in qemu-img check afterwards",
    "qemu-storage-daemon writes with discard=unmap, since its default leaves punched data in place",
  ];
}

async function qemuVersion({ servers }: Options): Promise<string> {
  if (!servers.includes("qsd")) return "";
  const { stdout } = await run(["qemu-storage-daemon", "--version"]);
  return /version (\d+(\.\d+)+)/.exec(stdout)?.[1] ?? "";
}
