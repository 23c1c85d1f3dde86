/** The table cache under real threads that keep replacing each other's slices. */

import fs from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { LocalFile } from "../../../src/storage/local-file.ts";
import { createAccessLock } from "../../../src/threads/access-lock.ts";
import { createTableCache } from "../../../src/threads/table-cache.ts";
import { asRecord, numberIn } from "../../support/json.ts";
import { SEED } from "../../support/random.ts";
import { byScale } from "../../support/scale.ts";
import { withScratch } from "../../support/scratch.ts";
import { bundleWorker, runWorker } from "../bundled-worker.ts";
import type { TableCacheWorkerData } from "./table-cache-worker.ts";
import type { TableWriterWorkerData } from "./table-writer-worker.ts";

const SLICES = 40;

/** A file whose every word is the number of its slice; the last slice is cut short. */
function writeSelfDescribing(path: string, sliceSize: number): void {
  const words = new Int32Array((SLICES * sliceSize) / 4);
  for (let index = 0; index < words.length; index++) {
    words[index] = Math.floor((index * 4) / sliceSize);
  }
  fs.writeFileSync(path, new Uint8Array(words.buffer, 0, words.byteLength - sliceSize / 2));
}

describe("TableCache between threads", () => {
  it.each([
    { sliceSize: 512, lookups: 6000 },
    { sliceSize: 4096, lookups: 3000 },
    { sliceSize: 65536, lookups: 1000 },
  ])(
    "never gives out a torn or replaced slice of $sliceSize bytes",
    async ({ sliceSize, lookups }) => {
      await withScratch("table-cache", async (directory) => {
        const path = join(directory, "tables");
        writeSelfDescribing(path, sliceSize);
        const script = await bundleWorker(new URL("./table-cache-worker.ts", import.meta.url));
        const file = LocalFile.open(path, "read-only");
        try {
          // One set for 44 slices: nearly every lookup replaces what another thread may be reading.
          const shared = createTableCache(sliceSize, 0);
          const results = await Promise.all(
            Array.from({ length: 4 }, (_, thread) => {
              const data: TableCacheWorkerData = {
                shared,
                file: file.share(),
                thread,
                seed: SEED,
                lookups,
              };
              return runWorker(script, data);
            }),
          );
          for (const result of results) {
            expect(numberIn(asRecord(result), "wrong")).toBe(0);
            expect(numberIn(asRecord(result), "replaced")).toBeGreaterThanOrEqual(0);
          }
        } finally {
          file.close();
        }
      });
    },
  );

  it("shows all threads what one of them has changed, under the lock of the image", async () => {
    await withScratch("table-writer", async (directory) => {
      const sliceSize = 512;
      const slices = 24;
      const path = join(directory, "tables");
      fs.writeFileSync(path, Buffer.alloc(slices * sliceSize));
      const script = await bundleWorker(new URL("./table-writer-worker.ts", import.meta.url));
      const file = LocalFile.open(path, "read-write");
      try {
        const common = {
          // One set: slices are replaced all the time.
          shared: createTableCache(sliceSize, 0),
          lock: createAccessLock(4),
          changes: new SharedArrayBuffer(slices * 4),
          file: file.share(),
          seed: SEED,
          rounds: byScale(4000, 80_000),
        };
        const results = await Promise.all(
          [0, 1, 2, 3].map((slot) => {
            const data: TableWriterWorkerData = { ...common, slot, writes: slot < 2 };
            return runWorker(script, data);
          }),
        );
        expect(results).toEqual(Array(4).fill({ wrong: 0 }));
        const words = new Int32Array(new Uint8Array(fs.readFileSync(path)).buffer);
        const changes = new Int32Array(common.changes);
        expect(changes.every((count) => count > 0)).toBe(true);
        words.forEach((word, index) => {
          if (word !== changes[Math.floor((index * 4) / sliceSize)]) expect.fail(`word ${index}`);
        });
      } finally {
        file.close();
      }
    });
  });
});
