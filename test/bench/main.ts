/**
 * `npm run bench`: tsimgfs against qemu-storage-daemon's FUSE export, and on a raw file against a C
 * server, in one run.
 * The Markdown table goes to stdout, what is being done to stderr. Nothing asserts a figure: the
 * table marks what is short of its aim.
 */

import { access, mkdtemp, realpath, statfs } from "node:fs/promises";
import { cpus, release } from "node:os";
import { join, resolve } from "node:path";
import { cellsOf, hasIoUring } from "./cells.ts";
import { CleanupStack, errorText } from "./cleanup-stack.ts";
import { makeImage } from "./images.ts";
import { buildRawfuse } from "./launch-rawfuse.ts";
import { MAIN } from "./launch-tsimgfs.ts";
import { type ImageResult, measureImage } from "./measure-image.ts";
import { type Options, parseOptions, USAGE } from "./options.ts";
import { allowedCpus } from "./proc.ts";
import { removeTree } from "./remove-tree.ts";
import { renderReport } from "./report.ts";
import { hasProgram, run } from "./run-command.ts";

const TMPFS = "/dev/shm";
/** f_type of tmpfs. */
const TMPFS_MAGIC = 0x0102_1994;

const PROGRAMS = [
  "fio",
  "qemu-img",
  "fusermount3",
  "taskset",
  "fincore",
  "dd",
  "cp",
  "cmp",
  "find",
  "sync",
];

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
  if (tmpfs === undefined) note(`no tmpfs at ${TMPFS}: cp goes to ${directory}`);
  const copyDirectory = tmpfs === undefined ? directory : await makeDirectory(tmpfs, cleanup);
  const rawfuse = await findRawfuse(options, directory, signal, note);
  const ioUring = await hasIoUring(directory, signal);
  if (!ioUring) note("no io_uring here: the QD16 cells are left out");

  const results: ImageResult[] = [];
  for (const name of options.images) {
    const servers = options.servers.filter(
      (server) => server !== "c" || (name === "raw" && rawfuse !== undefined),
    );
    const cells = (options.cells ?? cellsOf(name)).filter((cell) => cell !== "qd16" || ioUring);
    if (servers.length === 0 || cells.length === 0) continue;
    progress(`${name}: making the image`);
    const image = await makeImage(name, directory, options.sizeMib, signal);
    const { rounds, seconds, threads } = options;
    results.push(
      await measureImage({
        ...{ image, servers, cells, rounds, seconds, threads, rawfuse },
        ...{ cpus: await allowedCpus(), directory, copyDirectory, signal, progress },
      }),
    );
  }
  if (results.length === 0)
    throw new Error("nothing to measure: no server is there for the images and cells chosen");
  const elapsedS = Math.round((Date.now() - started) / 1000);
  return renderReport(
    {
      title: "tsimgfs benchmark",
      facts: [...machineFacts(options, elapsedS), ...facts],
      serverTitles: {
        tsimgfs: "tsimgfs",
        qsd: `QSD ${await qemuVersion(options)}`.trim(),
        c: "C server",
      },
    },
    results,
  );
}

function machineFacts({ rounds, seconds, sizeMib, threads }: Options, elapsedS: number): string[] {
  return [
    `${cpus().length} CPUs, kernel ${release()}, Node ${process.versions.node}, ${elapsedS} s in all`,
    `medians (and ranges) of ${rounds} interleaved rounds, ${seconds} s per fio cell; images of ${sizeMib} MiB in the page cache`,
    `tsimgfs with ${threads === undefined ? "its default number of" : threads} I/O threads`,
    "differences under 15 % mean nothing; unpinned QD1 is a wake-up lottery: look at its range",
  ];
}

async function requirePrograms({ servers }: Options): Promise<void> {
  const needed = servers.includes("qsd") ? [...PROGRAMS, "qemu-storage-daemon"] : PROGRAMS;
  for (const program of needed) {
    if (!(await hasProgram(program)))
      throw new Error(`${program} is not installed (mount-scripts/test.sh installs it)`);
  }
  if (!servers.includes("tsimgfs")) return;
  try {
    await access(MAIN);
  } catch {
    throw new Error(`${MAIN}: no such file, run npm run build first`);
  }
}

async function makeDirectory(parent: string, cleanup: CleanupStack): Promise<string> {
  // Without symbolic links, as the mount table writes paths.
  const directory = await mkdtemp(join(await realpath(parent), "tsimgfs-bench-"));
  cleanup.defer(() => removeTree(directory));
  return directory;
}

async function isTmpfs(path: string): Promise<boolean> {
  try {
    return (await statfs(path)).type === TMPFS_MAGIC;
  } catch {
    return false;
  }
}

/** The C server's program, or undefined with a note why there is none. */
async function findRawfuse(
  { rawfuse, images, servers }: Options,
  directory: string,
  signal: AbortSignal,
  note: (text: string) => void,
): Promise<string | undefined> {
  if (!images.includes("raw") || !servers.includes("c")) return undefined;
  if (rawfuse === undefined) {
    note("no C server: TSIMGFS_BENCH_RAWFUSE names neither rawfuse.c nor the program");
    return undefined;
  }
  try {
    return await buildRawfuse(resolve(rawfuse), directory, signal);
  } catch (error) {
    signal.throwIfAborted();
    note(`no C server (gcc, pkg-config and libfuse3-dev are needed): ${errorText(error)}`);
    return undefined;
  }
}

async function qemuVersion({ servers }: Options): Promise<string> {
  if (!servers.includes("qsd")) return "";
  const { stdout } = await run(["qemu-storage-daemon", "--version"]);
  return /version (\d+(\.\d+)+)/.exec(stdout)?.[1] ?? "";
}
