/**
 * Measures writing to one kind of image: a new image and a new server for each sample, in
 * interleaved rounds.
 */

import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Cell, FileTree } from "./cell.ts";
import { errorText } from "./cleanup-stack.ts";
import type { WriteImageName } from "./image-names.ts";
import { numberAt } from "./json-number.ts";
import { dropDeviceCache } from "./page-cache.ts";
import { BUSY_SAMPLE_MS, type Plan } from "./plan.ts";
import { busyShare, residentMib } from "./proc.ts";
import type { ImageResult } from "./result.ts";
import { run } from "./run-command.ts";
import { rotated, Samples } from "./samples.ts";
import type { ServedImage } from "./served-image.ts";
import { assertServing, type ServerName, startServer } from "./servers.ts";
import type { Outcome, WriteCell } from "./write-cell.ts";
import { WRITE_CELLS, type WriteCellName } from "./write-cells.ts";
import { makeFreshImage, type WriteSource } from "./write-images.ts";

export interface WritePlan extends Plan {
  readonly image: WriteImageName;
  readonly cells: readonly WriteCellName[];
  readonly source: WriteSource;
  readonly tree: FileTree | undefined;
}

interface WriteSample {
  readonly value: number;
  /** Undefined where no server was measured. */
  readonly server: { readonly readyMs: number; readonly residentMib: number } | undefined;
}

export async function measureWrites(plan: WritePlan): Promise<ImageResult> {
  const { image, cells, rounds, progress } = plan;
  const values = new Samples<WriteCellName>();
  const resources = new Samples<"readyMs" | "residentMib">();
  const busyShares: number[] = [];
  for (let round = 0; round < rounds; round += 1) {
    progress(`${image}, written: round ${round + 1} of ${rounds}`);
    busyShares.push(await busyShare(BUSY_SAMPLE_MS));
    for (const cell of cells) {
      for (const name of rotated(plan.servers, round)) {
        const sample = await measureSample(cell, name, plan);
        values.add(name, cell, sample.value);
        if (sample.server === undefined) continue;
        resources.add(name, "readyMs", sample.server.readyMs);
        resources.add(name, "residentMib", sample.server.residentMib);
      }
    }
  }
  const servers = plan.servers.map((name) => ({
    name,
    samples: values.of(name),
    readyMs: resources.of(name).get("readyMs") ?? [],
    residentMib: Math.max(0, ...(resources.of(name).get("residentMib") ?? [])),
  }));
  // tmpfs is the page cache.
  const cached = { readAheadKb: new Map<ServerName, undefined>(), cachedShare: 1 };
  return { ...{ image, access: "read-write", cells, servers, busyShares }, ...cached };
}

/** One sample of a new image. Says of a failure which server and cell it is. */
async function measureSample(
  cell: WriteCellName,
  name: ServerName,
  plan: WritePlan,
): Promise<WriteSample> {
  const { signal } = plan;
  const shape = WRITE_CELLS[cell];
  const { outcome, sizeFactor = 1 } = shape;
  const image = await makeFreshImage(plan.image, plan.source, sizeFactor, signal);
  try {
    const sample =
      "measureFile" in shape
        ? { value: await shape.measureFile({ name, image, signal }), server: undefined }
        : await measureServer(shape, name, image, plan);
    await assertOutcome(image, outcome, signal);
    return sample;
  } catch (error) {
    signal.throwIfAborted();
    throw new Error(`${name}, ${cell}: ${errorText(error)}`, { cause: error });
  } finally {
    await rm(image.path);
  }
}

/** The sample, with the check before and after that it is the server that is measured. */
async function measureServer(
  cell: WriteCell & Cell,
  name: ServerName,
  image: ServedImage,
  plan: WritePlan,
): Promise<WriteSample> {
  const { seconds, threads, rawfuse, cpus, copyDirectory, tree, signal } = plan;
  const directory = join(plan.directory, `writing-${name}`);
  const server = await startServer(name, {
    ...{ image, access: "read-write", directory, threads, rawfuse, signal },
    copyOnRead: cell.copyOnRead,
  });
  try {
    await dropDeviceCache(server.device, signal);
    await assertServing(server);
    const imagePath = image.path;
    const target = { server, imagePath, seconds, cpus, copyDirectory, tree, signal };
    const value = await cell.measure(target);
    await assertServing(server);
    const { readyMs, pid } = server;
    return { value, server: { readyMs, residentMib: await residentMib(pid) } };
  } finally {
    await server.stop();
  }
}

/** What a punched image may still occupy, as a share of its size. */
const PUNCHED_SHARE = 1 / 64;

/** Throws if the closed image is damaged, or does not show the work that was measured. */
async function assertOutcome(
  image: ServedImage,
  outcome: Outcome,
  signal: AbortSignal,
): Promise<void> {
  const { path, format, virtualSize } = image;
  if (outcome === "punched") {
    const occupied = (await stat(path)).blocks * 512;
    if (occupied > virtualSize * PUNCHED_SHARE)
      throw new Error(`${path} still occupies ${occupied} bytes: nothing was punched`);
  }
  if (format !== "qcow2") return;
  const { stdout } = await run(["qemu-img", "check", "--output", "json", path], { signal });
  const report: unknown = JSON.parse(stdout);
  const [allocated, total] = ["allocated-clusters", "total-clusters"].map(
    (field) => numberAt(report, [field]) ?? 0,
  );
  if (outcome === "full" && allocated !== total)
    throw new Error(`${path} has ${allocated} of ${total} clusters: not all was written`);
}
