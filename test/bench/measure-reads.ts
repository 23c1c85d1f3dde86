/** Measures reading one image: all servers up, all cells in interleaved rounds. */

import { join } from "node:path";
import { CleanupStack } from "./cleanup-stack.ts";
import { cacheImage, type Image } from "./images.ts";
import { findMount, readAheadKb } from "./mount-table.ts";
import { dropDeviceCache } from "./page-cache.ts";
import { BUSY_SAMPLE_MS, type Plan } from "./plan.ts";
import { busyShare, residentMib } from "./proc.ts";
import { READ_CELLS, type ReadCellName } from "./read-cells.ts";
import type { ImageResult, ServerResult } from "./result.ts";
import { run } from "./run-command.ts";
import { rotated, Samples } from "./samples.ts";
import { assertServing, type Server, type ServerName, startServer } from "./servers.ts";

export interface ReadPlan extends Plan {
  readonly image: Image;
  readonly cells: readonly ReadCellName[];
}

export async function measureReads(plan: ReadPlan): Promise<ImageResult> {
  const { image, rounds, progress } = plan;
  let starts = 0;
  const start = (name: ServerName): Promise<Server> => {
    const { threads, rawfuse, signal } = plan;
    starts += 1;
    const directory = join(plan.directory, `${image.name}-${name}-${starts}`);
    return startServer(name, {
      ...{ image, access: "read-only", directory, threads, rawfuse, signal },
    });
  };

  let cachedShare = await cacheImage(image, plan.signal);
  progress(`${image.name}: starting and stopping`);
  const ready = new Samples<"ready">();
  for (let round = 0; round < rounds; round += 1) {
    for (const name of rotated(plan.servers, round)) {
      const server = await start(name);
      await server.stop();
      ready.add(name, "ready", server.readyMs);
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

    const samples = new Samples<ReadCellName>();
    const busyShares: number[] = [];
    for (let round = 0; round < rounds; round += 1) {
      progress(`${image.name}: round ${round + 1} of ${rounds}`);
      cachedShare = Math.min(cachedShare, await cacheImage(image, plan.signal));
      busyShares.push(await busyShare(BUSY_SAMPLE_MS));
      for (const cell of plan.cells) {
        for (const server of rotated(servers, round)) {
          samples.add(server.name, cell, await sample(cell, server, plan));
        }
      }
    }

    const results: ServerResult[] = [];
    const readAhead = new Map<ServerName, number | undefined>();
    for (const { name, pid, mountPoint } of servers) {
      const mount = await findMount(mountPoint);
      readAhead.set(name, mount && (await readAheadKb(mount)));
      results.push({
        name,
        samples: samples.of(name),
        readyMs: ready.of(name).get("ready") ?? [],
        residentMib: await residentMib(pid),
      });
    }
    return {
      ...{ image: image.name, access: "read-only", cells: plan.cells, servers: results },
      ...{ readAheadKb: readAhead, busyShares, cachedShare },
    };
  } finally {
    await cleanup.unwind();
  }
}

/** One sample, with the check before and after that it is the server that is measured. */
async function sample(cell: ReadCellName, server: Server, plan: ReadPlan): Promise<number> {
  const { seconds, cpus, copyDirectory, signal } = plan;
  await assertServing(server);
  const imagePath = plan.image.path;
  const target = { server, imagePath, seconds, cpus, copyDirectory, tree: undefined, signal };
  const value = await READ_CELLS[cell].measure(target);
  await assertServing(server);
  return value;
}

/**
 * A server that is fast and wrong has no place in the table. It has read everything once after
 * this.
 */
async function assertContent({ name, device }: Server, { image, signal }: ReadPlan): Promise<void> {
  try {
    await run(["cmp", device, image.contentPath], { signal });
  } catch (error) {
    signal.throwIfAborted();
    throw new Error(`${name} shows other bytes than the image ${image.name} has`, { cause: error });
  }
  await dropDeviceCache(device, signal);
}
