/**
 * Several threads that read and write the same clusters of an overlay, as the daemon's do: every byte that is
 * read is one that was there at that time, and copies never come over what was written.
 */

import fs from "node:fs";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { describe, expect, it } from "vitest";
import { attachDisk } from "../../src/block/attach-disk.ts";
import type { Disk } from "../../src/block/disk.ts";
import { closeChain, openChain } from "../../src/block/open-chain.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { convertToRaw, createImage, type ImageFormat } from "../support/qemu.ts";
import { SEED } from "../support/random.ts";
import { byScale } from "../support/scale.ts";
import { expectClean } from "../support/write-images.ts";
import { bundleWorker } from "../unit/bundled-worker.ts";
import { CELL_SIZE, Cells, createCells, putValue, wrongWord } from "./cell-values.ts";
import type { CopyThreadData } from "./copy-thread.ts";

const THREADS = 4;
/** Each one starts with an overlay without clusters: most threads meet then. */
const ROUNDS = byScale(3, 20);
const STEPS = byScale(200, 1000);
const VIRTUAL_SIZE = 6 * 2 ** 20;
const CELLS = VIRTUAL_SIZE / CELL_SIZE;

interface Kind {
  readonly name: string;
  readonly format: ImageFormat;
  readonly options: Readonly<Record<string, string | number>>;
}

const KINDS: readonly Kind[] = [
  { name: "v3", format: "qcow2", options: {} },
  { name: "clusters of 2 KiB", format: "qcow2", options: { cluster_size: 2048 } },
  { name: "extended L2", format: "qcow2", options: { extended_l2: "on", cluster_size: 131072 } },
  { name: "v2", format: "qcow2", options: { compat: "0.10", cluster_size: 4096 } },
  { name: "QED", format: "qed", options: { cluster_size: 16384 } },
];

/** Runs a thread to its end; `onRequest` is called when it asks for maintenance. */
function runThread(script: string, data: CopyThreadData, onRequest: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(script, { eval: true, workerData: data });
    worker.on("message", onRequest);
    worker.on("error", reject);
    worker.on("exit", () => resolve());
  });
}

/** The first cell that is not what was written there last, or undefined. */
function wrongCell(disk: Buffer, cells: Cells): string | undefined {
  for (let cell = 0; cell < CELLS; cell++) {
    const range = { cell, oldest: cells.ended(cell), newest: cells.ended(cell) };
    const wrong = wrongWord(disk, cell * CELL_SIZE, range);
    if (wrong !== undefined) return wrong;
  }
  return undefined;
}

function readWhole(disk: Disk): Buffer {
  const target = NativeBuffer.allocate(VIRTUAL_SIZE);
  disk.read(0, VIRTUAL_SIZE, target, 0);
  return Buffer.from(target.bytes);
}

/** Threads at work on a new overlay, and what is in it then. */
async function workOn(
  directory: string,
  { name, format, options }: Kind,
  script: string,
  round: number,
): Promise<void> {
  const base = join(directory, "base.raw");
  const path = join(directory, `disk.${format}`);
  const first = Buffer.alloc(VIRTUAL_SIZE);
  for (let cell = 0; cell < CELLS; cell++) putValue(first, cell * CELL_SIZE, cell, 0);
  fs.writeFileSync(base, first);
  await createImage(path, format, { options, backing: { file: base, format: "raw" } });
  const memory = createCells(CELLS);
  const chain = openChain(path, {
    ...{ format, backingPolicy: "any", forceShare: false },
    writing: {
      policy: { detectZeroes: "on", discard: "unmap", growable: false, copyOnRead: true },
      threads: THREADS + 1,
    },
  });
  try {
    const own = { slot: THREADS, requestMaintenance: undefined };
    const disk = attachDisk(chain, { clusterCache: new ClusterCache() }, own);
    const shared = { chain, cells: memory, virtualSize: VIRTUAL_SIZE, threads: THREADS };
    const threads = Array.from({ length: THREADS }, (_, slot): CopyThreadData => {
      return {
        ...shared,
        slot,
        seed: SEED,
        label: `copies ${name} ${round} ${slot}`,
        steps: STEPS,
      };
    });
    const ends = await Promise.allSettled(
      threads.map((data) => runThread(script, data, () => disk.maintain())),
    );
    for (const end of ends) if (end.status === "rejected") throw end.reason;
    expect(wrongCell(readWhole(disk), new Cells(memory)), "in the end").toBeUndefined();
    disk.close();
  } finally {
    closeChain(chain);
  }
  await expectClean(path, format);
  fs.writeFileSync(base, Buffer.alloc(VIRTUAL_SIZE, 0xee));
  const flat = join(directory, "flat");
  await convertToRaw(path, format, flat);
  const shown = wrongCell(fs.readFileSync(flat), new Cells(memory));
  expect(shown, "over another backing file").toBeUndefined();
}

describe("threads that read and write the same clusters of an overlay", () => {
  it.each(KINDS)("see what is there: $name", async (kind) => {
    const script = await bundleWorker(new URL("./copy-thread.ts", import.meta.url));
    for (let round = 0; round < ROUNDS; round++) {
      await withMemoryScratch("copies", (directory) => workOn(directory, kind, script, round));
    }
  });
});
