/** Measures one image: all servers up, all cells in interleaved rounds. */

import { join } from "node:path";
import { CELLS, type CellName, dropDeviceCache } from "./cells.ts";
import { CleanupStack } from "./cleanup-stack.ts";
import { cacheImage, type Image } from "./images.ts";
import { findMount, readAheadKb } from "./mount-table.ts";
import { busyShare, residentMib } from "./proc.ts";
import { run } from "./run-command.ts";
import { assertServing, type Server, type ServerName, startServer } from "./servers.ts";

export interface ImagePlan {
  readonly image: Image;
  readonly servers: readonly ServerName[];
  readonly cells: readonly CellName[];
  readonly rounds: number;
  readonly seconds: number;
  readonly threads: number | undefined;
  readonly rawfuse: string | undefined;
  readonly cpus: readonly number[];
  readonly directory: string;
  readonly copyDirectory: string;
  readonly signal: AbortSignal;
  /** Told what is being done. */
  readonly progress: (text: string) => void;
}

export interface ServerResult {
  readonly name: ServerName;
  readonly samples: ReadonlyMap<CellName, readonly number[]>;
  readonly readyMs: readonly number[];
  /** After all cells. */
  readonly residentMib: number;
  readonly readAheadKb: number | undefined;
}

export interface ImageResult {
  readonly image: Image;
  readonly cells: readonly CellName[];
  readonly servers: readonly ServerResult[];
  /** Share of CPU time that others used just before each round, 0 to 1. */
  readonly busyShares: readonly number[];
  /** Least share of the image that was in the page cache before a round, 0 to 1. */
  readonly cachedShare: number;
}

/** How long others' use of the CPUs is watched before a round. */
const BUSY_SAMPLE_MS = 250;

export async function measureImage(plan: ImagePlan): Promise<ImageResult> {
  const { image, rounds, progress } = plan;
  let starts = 0;
  const start = (name: ServerName): Promise<Server> => {
    const { threads, rawfuse, signal } = plan;
    starts += 1;
    const directory = join(plan.directory, `${image.name}-${name}-${starts}`);
    return startServer(name, { image, directory, threads, rawfuse, signal });
  };

  let cachedShare = await cacheImage(image, plan.signal);
  progress(`${image.name}: starting and stopping`);
  const readyMs = new Map<ServerName, number[]>();
  for (let round = 0; round < rounds; round += 1) {
    for (const name of rotated(plan.servers, round)) {
      const server = await start(name);
      await server.stop();
      append(readyMs, name, server.readyMs);
    }
  }

  const cleanup = new CleanupStack();
  try {
    const servers: Server[] = [];
    for (const name of plan.servers) {
      const server = await start(name);
      cleanup.defer(() => server.stop());
      servers.push(server);
      progress(`${image.name}: comparing the content of ${name} with the source`);
      await assertContent(server, plan);
    }

    const samples = new Map(servers.map(({ name }) => [name, new Map<CellName, number[]>()]));
    const busyShares: number[] = [];
    for (let round = 0; round < rounds; round += 1) {
      progress(`${image.name}: round ${round + 1} of ${rounds}`);
      cachedShare = Math.min(cachedShare, await cacheImage(image, plan.signal));
      busyShares.push(await busyShare(BUSY_SAMPLE_MS));
      for (const cell of plan.cells) {
        for (const server of rotated(servers, round)) {
          append(
            samples.get(server.name) ?? new Map<CellName, number[]>(),
            cell,
            await sample(cell, server, plan),
          );
        }
      }
    }

    const results: ServerResult[] = [];
    for (const { name, pid, mountPoint } of servers) {
      const mount = await findMount(mountPoint);
      results.push({
        name,
        samples: samples.get(name) ?? new Map<CellName, number[]>(),
        readyMs: readyMs.get(name) ?? [],
        residentMib: await residentMib(pid),
        readAheadKb: mount && (await readAheadKb(mount)),
      });
    }
    return { image, cells: plan.cells, servers: results, busyShares, cachedShare };
  } finally {
    await cleanup.unwind();
  }
}

/** One sample, with the check before and after that it is the server that is measured. */
async function sample(cell: CellName, server: Server, plan: ImagePlan): Promise<number> {
  const { seconds, cpus, copyDirectory, signal } = plan;
  await assertServing(server);
  const value = await CELLS[cell].measure({ server, seconds, cpus, copyDirectory, signal });
  await assertServing(server);
  return value;
}

/**
 * A server that is fast and wrong has no place in the table. It has read everything once after
 * this.
 */
async function assertContent(
  { name, device }: Server,
  { image, signal }: ImagePlan,
): Promise<void> {
  try {
    await run(["cmp", device, image.contentPath], { signal });
  } catch (error) {
    signal.throwIfAborted();
    throw new Error(`${name} shows other bytes than the image ${image.name} has`, { cause: error });
  }
  await dropDeviceCache(device, signal);
}

/** The same items, beginning with another one in each round. */
function rotated<T>(items: readonly T[], round: number): T[] {
  const first = items.length === 0 ? 0 : round % items.length;
  return [...items.slice(first), ...items.slice(0, first)];
}

function append<K>(samples: Map<K, number[]>, key: K, value: number): void {
  const list = samples.get(key);
  if (list === undefined) samples.set(key, [value]);
  else list.push(value);
}
