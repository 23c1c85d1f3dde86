/** The table cache under real threads that keep replacing each other's slices. */

import fs from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { LocalFile } from "../../../src/storage/local-file.ts";
import { createTableCache } from "../../../src/threads/table-cache.ts";
import { asRecord, numberIn } from "../../support/json.ts";
import { SEED } from "../../support/random.ts";
import { withScratch } from "../../support/scratch.ts";
import { bundleWorker, runWorker } from "../bundled-worker.ts";
import type { TableCacheWorkerData } from "./table-cache-worker.ts";

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
});
