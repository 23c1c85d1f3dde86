// What one process has written through the page cache, others read there, whatever a third one does.

import { rmSync } from "node:fs";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { mounted } from "../support/mounted.ts";
import { createImage } from "../support/qemu.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";

const ROUNDS = byScale(100, 2000);
const SIZE = 2 * 2 ** 20;
/** Bytes of a write, and of a read meanwhile. */
const PIECE = 2 ** 20;
const PART = 64 * 1024;

/** Words that the threads share. */
const WRITTEN = 0;
const VERIFIED = 1;
const OPENED = 2;
const WRITING_AT = 3;

const COMMON = `
const fs = require("node:fs");
const { parentPort, workerData } = require("node:worker_threads");
const { device, words, rounds, size } = workerData;
`;

/** Fills the start of the device with the number of a round; and waits until that was verified. */
const WRITER = `${COMMON}
const fd = fs.openSync(device, "r+");
const bytes = Buffer.alloc(size);
for (let round = 1; round <= rounds; round++) {
  bytes.fill(round % 251);
  for (let at = 0; at < size; at += ${PIECE}) {
    Atomics.store(words, ${WRITING_AT}, at);
    fs.writeSync(fd, bytes, at, ${PIECE}, at);
  }
  Atomics.store(words, ${WRITTEN}, round);
  while (Atomics.load(words, ${VERIFIED}) < round) Atomics.wait(words, ${VERIFIED}, round - 1, 1000);
}
fs.closeSync(fd);
`;

/** Reads what the writer is writing; and all, when he has written it. Tells how many rounds were not what he wrote. */
const READER = `${COMMON}
const fd = fs.openSync(device, "r");
const bytes = Buffer.alloc(size);
let wrong = 0;
let part = 0;
for (let round = 1; round <= rounds; ) {
  if (Atomics.load(words, ${WRITTEN}) < round) {
    part = (part + ${PART}) % ${PIECE};
    fs.readSync(fd, bytes, 0, ${PART}, Atomics.load(words, ${WRITING_AT}) + part);
    continue;
  }
  fs.readSync(fd, bytes, 0, size, 0);
  if (!bytes.equals(Buffer.alloc(size, round % 251))) wrong++;
  Atomics.store(words, ${VERIFIED}, round++);
  Atomics.notify(words, ${VERIFIED});
}
fs.closeSync(fd);
parentPort.postMessage(wrong);
`;

/** Opens the device past the page cache, as losetup --direct-io and dd iflag=direct do, until all is verified. */
const OPENER = `${COMMON}
const flags = fs.constants.O_RDONLY | fs.constants.O_DIRECT;
while (Atomics.load(words, ${VERIFIED}) < rounds) {
  fs.closeSync(fs.openSync(device, flags));
  Atomics.add(words, ${OPENED}, 1);
}
`;

describe("the page cache of a device", () => {
  let directory = "";

  beforeAll(async () => {
    directory = await makeScratch("page-cache");
  });

  afterAll(() => rmSync(directory, { recursive: true, force: true }));

  it("has what was written last, also while others open the device with O_DIRECT", async () => {
    const image = join(directory, "disk.qcow2");
    await createImage(image, "qcow2", { size: 4 * 2 ** 20 });
    await mounted([image], {}, async (mount) => {
      const words = new Int32Array(new SharedArrayBuffer(4 * Int32Array.BYTES_PER_ELEMENT));
      const workerData = { device: mount.device(image), words, rounds: ROUNDS, size: SIZE };
      const messages: unknown[] = [];
      const workers = [WRITER, READER, OPENER].map(
        (script) => new Worker(script, { eval: true, workerData }),
      );
      try {
        await Promise.all(
          workers.map((worker) => {
            worker.on("message", (message) => messages.push(message));
            return new Promise<void>((resolve, reject) => {
              worker.once("error", reject).once("exit", () => resolve());
            });
          }),
        );
      } finally {
        // One that has failed leaves the others waiting.
        await Promise.all(workers.map((worker) => worker.terminate()));
      }
      expect(messages).toEqual([0]);
      expect(Atomics.load(words, OPENED)).toBeGreaterThan(0);
    });
  });
});
