/**
 * A session of several threads with a disk each, as the daemon has them, whose storage calls are recorded in
 * one order. Threads are not deterministic: a seed repeats what they ask for, not how they meet. So a
 * recording can be kept in a directory, and be verified again.
 */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { deserialize, serialize } from "node:v8";
import { Worker } from "node:worker_threads";
import { attachDisk } from "../../src/block/attach-disk.ts";
import { closeChain, type OpenChain, openChain } from "../../src/block/open-chain.ts";
import type { WritePolicy } from "../../src/block/write-policy.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { secretsOf } from "./crash-engine.ts";
import { IMAGE_NAME, imageFiles } from "./crash-images.ts";
import type { ImageRecipe } from "./crash-recipes.ts";
import type { CrashModel, RecordedSession } from "./crash-session.ts";
import type { CrashThreadData } from "./crash-thread.ts";
import { type DiskPart, type DiskStep, describeStep } from "./crash-workload.ts";
import { type Allowed, DiskModel, SECTOR_SIZE } from "./disk-model.ts";
import { attachLogged } from "./logged-file.ts";
import { Random, SEED } from "./random.ts";
import { SparseFile } from "./recording-sparse-file.ts";
import type { RecordingLog } from "./recording-storage.ts";
import { SharedLog } from "./shared-log.ts";

/** Threads that work; the main thread has a disk, too. */
const THREADS = 3;

/** A step that was acknowledged: where the log stood before it began, and after it had ended. */
export interface DoneByThread {
  readonly thread: number;
  readonly step: DiskStep;
  readonly start: number;
  readonly end: number;
}

/** What a thread tells the main thread: what it has done, or that maintenance is wanted. */
export type ThreadMessage = DoneByThread | "maintain";

/** What threads did, and what became of the files. */
export interface ThreadsRecording {
  /** The files before it, and what the disk contained. */
  readonly initial: readonly SparseFile[];
  readonly content: SparseFile;
  /** The files after it. */
  readonly files: readonly SparseFile[];
  readonly log: RecordingLog;
  /** What each thread alone wrote to. */
  readonly parts: readonly DiskPart[];
  /** Of each thread, in its order; closing comes last. */
  readonly done: readonly DoneByThread[];
}

export interface ThreadsOptions {
  /** Of `bundleWorker`, of crash-thread.ts. */
  readonly script: string;
  readonly recipe: ImageRecipe;
  /** Where the image lies, whose disk contains `content`. */
  readonly directory: string;
  readonly content: SparseFile;
  readonly label: string;
  /** Of each thread. */
  readonly steps: number;
}

/** Parts that meet anywhere within clusters, and cover the disk: one for each thread, and one for none. */
function randomParts(random: Random, virtualSize: number): DiskPart[] {
  const sectors = virtualSize / SECTOR_SIZE;
  const borders = new Set<number>();
  while (borders.size < THREADS) borders.add(random.between(1, sectors - 1) * SECTOR_SIZE);
  const all = [0, ...[...borders].sort((a, b) => a - b), virtualSize];
  return all.slice(1).map((end, index) => ({ first: all[index] ?? 0, end }));
}

/** Runs a thread to its end. */
function runThread(
  script: string,
  data: CrashThreadData,
  onMessage: (message: ThreadMessage) => void,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(script, { eval: true, workerData: data });
    worker.on("message", onMessage);
    worker.on("error", reject);
    worker.on("exit", () => resolve());
  });
}

/** @throws {Error} the engine failed, or read something else than what was written */
export async function recordThreads(options: ThreadsOptions): Promise<ThreadsRecording> {
  const { recipe, directory, label } = options;
  const random = new Random(label);
  const policy: WritePolicy = {
    detectZeroes: random.pick(["on", "unmap", "off"]),
    discard: random.pick(["unmap", "unmap", "ignore"]),
    growable: false,
    copyOnRead: true,
  };
  const chain = openChain(join(directory, IMAGE_NAME), {
    format: recipe.format,
    backingPolicy: "any",
    forceShare: false,
    secrets: secretsOf(recipe),
    writing: { policy, threads: THREADS + 1 },
  });
  try {
    return await recordOn(chain, options, random);
  } finally {
    closeChain(chain);
  }
}

async function recordOn(
  chain: OpenChain,
  { script, recipe, directory, content, label, steps }: ThreadsOptions,
  random: Random,
): Promise<ThreadsRecording> {
  const paths = imageFiles(directory, recipe);
  const contentPath = join(directory, "content");
  content.save(contentPath);
  const load = (): SparseFile[] => paths.map((path) => SparseFile.load(path));
  const initial = load();
  const parts = randomParts(random, recipe.virtualSize);
  const common = parts.splice(random.below(parts.length), 1)[0] ?? { first: 0, end: 0 };
  const memory = SharedLog.createMemory();
  const log = new SharedLog(memory);
  const disk = attachDisk(
    chain,
    { clusterCache: new ClusterCache() },
    { slot: THREADS, requestMaintenance: undefined },
    attachLogged(paths, log, new Random(`pauses of the main thread of ${label}`)),
  );
  const done: DoneByThread[] = [];
  const shape = { virtualSize: recipe.virtualSize, clusterSize: recipe.clusterSize };
  const shared = { chain, shape, common, seed: SEED, steps, log: memory, paths, contentPath };
  const ends = await Promise.allSettled(
    parts.map((part, slot) => {
      const data = { ...shared, part, slot, label: `thread ${slot} of ${label}` };
      return runThread(script, data, (message) => {
        if (message === "maintain") disk.maintain();
        else done.push(message);
      });
    }),
  );
  for (const end of ends) if (end.status === "rejected") throw end.reason;
  const start = log.count;
  disk.close();
  done.push({ thread: THREADS, step: { kind: "flush" }, start, end: log.count });
  return { initial, content, files: load(), log: log.read(), parts, done };
}

/** What a disk may contain whose parts have a model each. */
class ThreadsModel implements CrashModel {
  readonly #parts: readonly { readonly part: DiskPart; readonly model: DiskModel }[];
  readonly #content: SparseFile;

  constructor({ content, parts, done }: ThreadsRecording) {
    this.#content = content;
    // Whoever asks for it, what had been acknowledged to anybody by then is durable afterwards.
    const flushes = done.filter(({ step }) => step.kind === "flush");
    flushes.sort((a, b) => a.start - b.start);
    this.#parts = parts.map((part, thread) => {
      const model = new DiskModel(content);
      let next = 0;
      const flushUpTo = (position: number): void => {
        for (let flush = flushes[next]; flush !== undefined; flush = flushes[++next]) {
          if (flush.start >= position) return;
          model.flushed(flush.end);
        }
      };
      for (const own of done) {
        if (own.thread !== thread || own.step.kind === "flush") continue;
        flushUpTo(own.end);
        model.done(own.step, own);
      }
      flushUpTo(Number.POSITIVE_INFINITY);
      return { part, model };
    });
  }

  allowedAfterKill(position: number): Allowed {
    return this.#merge((model) => model.allowedAfterKill(position));
  }

  allowedAfterPowerCut(position: number, how: { mixed: boolean }): Allowed {
    return this.#merge((model) => model.allowedAfterPowerCut(position, how));
  }

  /** Parts end with sectors: each sector is of one model, or as it was. */
  #merge(allowedBy: (model: DiskModel) => Allowed): Allowed {
    const base = this.#content.clone();
    const versions = new Map<number, readonly Uint8Array[]>();
    let mixed = false;
    for (const { part, model } of this.#parts) {
      const allowed = allowedBy(model);
      base.write(part.first, allowed.base.bytesAt(part.first, part.end - part.first));
      for (const [sector, list] of allowed.versions) versions.set(sector, list);
      mixed ||= allowed.mixed;
    }
    return { base, sizes: [base.length], versions, mixed };
  }
}

/** The session of a recording, to be verified. */
export function sessionOf(recording: ThreadsRecording): RecordedSession {
  const { initial, files, log } = recording;
  const done = [...recording.done].sort((a, b) => a.start - b.start);
  return {
    initial,
    files,
    log,
    model: new ThreadsModel(recording),
    done: done.map(({ thread, step, start, end }) => {
      const who = thread < THREADS ? `thread ${thread}` : "the end";
      return { what: `${who}: ${describeStep(step)}`, start, end };
    }),
  };
}

const RECORDING_NAME = "recording";

/** What a recording has that is no file. */
type Kept = Pick<ThreadsRecording, "log" | "parts" | "done"> & { readonly label: string };

/** Keeps a recording in an empty directory. */
export function keepRecording(directory: string, label: string, recording: ThreadsRecording): void {
  const { initial, content, files, log, parts, done } = recording;
  for (const [index, file] of initial.entries()) file.save(join(directory, `initial-${index}`));
  for (const [index, file] of files.entries()) file.save(join(directory, `final-${index}`));
  content.save(join(directory, "content"));
  const kept: Kept = { label, log, parts, done };
  writeFileSync(join(directory, RECORDING_NAME), serialize(kept));
}

/** The recording in a directory. */
export function loadRecording(directory: string): { label: string; recording: ThreadsRecording } {
  const kept: Kept = deserialize(readFileSync(join(directory, RECORDING_NAME)));
  const files = (name: string): SparseFile[] => {
    const count = kept.log.operations.reduce((most, { file }) => Math.max(most, file + 1), 1);
    return Array.from({ length: count }, (_, index) =>
      SparseFile.load(join(directory, `${name}-${index}`)),
    );
  };
  const content = SparseFile.load(join(directory, "content"));
  const { label, ...rest } = kept;
  return {
    label,
    recording: { ...rest, initial: files("initial"), files: files("final"), content },
  };
}
