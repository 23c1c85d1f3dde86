// Hostile images through the kernel: many per mount, read whole, beside a good one that must stay readable.

import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { deflate, zstdFrame, zstdRun, zstdStore } from "../support/compressed-stream-builder.ts";
import { type DamagedImage, damagedQcow2, damagedQed } from "../support/damaged-tables.ts";
import {
  checkSideFiles,
  expectHealthyDaemon,
  outcomeByMount,
  readThroughCache,
} from "../support/hostile-mount.ts";
import { outcomeByQemu } from "../support/hostile-oracle.ts";
import { disagreement } from "../support/hostile-outcome.ts";
import { qcow2Sample, qedSample } from "../support/hostile-samples.ts";
import { UNPRINTABLE } from "../support/hostile-text.ts";
import { type Mount, mounted, refusedMount } from "../support/mounted.ts";
import { buildQcow2 } from "../support/qcow2-builder.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";

function bombs(): DamagedImage[] {
  const cluster = (stream: Uint8Array, compressionType: 0 | 1): Uint8Array =>
    buildQcow2({
      virtualSize: 4 * 65536,
      compressionType,
      clusters: { 0: { kind: "compressed", stream } },
    }).bytes;
  const run = { kind: "run", byte: 1, count: 65536 } as const;
  return [
    ["deflate-bomb.qcow2", cluster(deflate(Buffer.alloc(32 * 1024 * 1024)), 0)],
    ["deflate-short.qcow2", cluster(deflate(Buffer.alloc(100)), 0)],
    ["zstd-bomb.qcow2", cluster(zstdRun(1, 256 * 1024 * 1024), 1)],
    ["zstd-window.qcow2", cluster(zstdFrame({ blocks: [run], windowExponent: 31 }), 1)],
    ["zstd-content-size.qcow2", cluster(zstdFrame({ blocks: [run], contentSize: 1n << 62n }), 1)],
  ];
}

/** Mounts the images together with a good one, reads everything, compares with qemu-img, and looks at the daemon. */
async function checkMounted(damaged: readonly DamagedImage[], directory: string): Promise<void> {
  const good = qcow2Sample().write(join(directory, "good.qcow2"));
  const images = damaged.map(([name, bytes]) => {
    const path = join(directory, name.replace(/\.(\w+)$/, "-$1.$1"));
    writeFileSync(path, bytes);
    return path;
  });
  await mounted([good, ...images], { args: ["-r"] }, async (mount) => {
    // All at once first: I/O threads share the table caches that the damage passes through.
    await Promise.all(images.map((image) => readThroughCache(mount.device(image))));
    for (const image of images) {
      await checkDevice(mount, image);
    }
    const outcome = await outcomeByMount(mount.device(good));
    expect(
      disagreement(outcome, await outcomeByQemu(good, "qcow2"), "same"),
      "the good image",
    ).toBeUndefined();
    expectHealthyDaemon(mount);
  });
}

async function checkDevice(mount: Mount, image: string): Promise<void> {
  const ours = await outcomeByMount(mount.device(image));
  const qemus = await outcomeByQemu(image, image.endsWith(".qed") ? "qed" : "qcow2");
  // Reasons are in no reply: whether an EIO of ours is right is for the tests of the engine.
  expect(disagreement(ours, qemus, "anything"), image).toBeUndefined();
  await checkSideFiles(mount, image);
}

describe("mounts of damaged images", () => {
  it("give EIO for what is damaged and the right bytes for the rest: qcow2", async () => {
    await withScratch("hostile-mount", (directory) => checkMounted(damagedQcow2(), directory));
  });

  it("give EIO for what is damaged and the right bytes for the rest: compressed clusters and QED", async () => {
    await withScratch("hostile-mount", (directory) =>
      checkMounted([...bombs(), ...damagedQed()], directory),
    );
  });

  it.each<[string, () => Uint8Array]>([
    ["an empty file", () => new Uint8Array(0)],
    ["a header cut short", () => qcow2Sample().truncated(50)],
    ["cluster_bits 63", () => qcow2Sample().setHeader("cluster_bits", 63).bytes],
    [
      "an L1 table of 2^32 - 1 entries",
      () => qcow2Sample().setHeader("l1_size", 0xffff_ffff).bytes,
    ],
    [
      "an unknown incompatible feature",
      () => qcow2Sample("version 3", { incompatible: 1n << 63n }).bytes,
    ],
    [
      "a backing file in the network",
      () => buildQcow2({ backingFile: "nbd://127.0.0.1:9/\n\u001b[2J" }).bytes,
    ],
    ["encryption", () => qcow2Sample().setHeader("crypt_method", 2).bytes],
    [
      "QED with an impossible cluster size",
      () => qedSample().setHeader("cluster_size", 12345).bytes,
    ],
  ])("refuse in one line and leave nothing behind: %s", async (_label, bytes) => {
    await withScratch("hostile-mount", async (directory) => {
      const good = qcow2Sample().write(join(directory, "good.qcow2"));
      const bad = join(directory, "bad.qcow2");
      writeFileSync(bad, bytes());
      expect(await refusedMount([good, bad], { args: ["-r"] })).toContain(bad);
    });
  });
});

const HOSTILE_NAMES: readonly (string | Uint8Array)[] = [
  "",
  ".",
  "..",
  "/",
  "a/b",
  "../../../../etc/passwd",
  "/etc/passwd",
  "new\nline",
  "\u001b[2J",
  "tab\tcarriage\r",
  "x".repeat(255),
  "x".repeat(256),
  "\u{1f600}".repeat(80),
  "same",
  "same",
  "same.raw",
  "SAME",
  Buffer.from("nul\0byte"),
  Buffer.from([0xff, 0xfe, 0x2f, 0x80]),
  Buffer.from([0xc3]),
  // What one of them could be called to be told apart from another is taken already: ids are index + 1.
  "dup~24~23",
  "dup~24",
  "dup",
  "dup",
];

describe("snapshots with hostile names", () => {
  it("become distinct file names of one component, all readable", async () => {
    await withScratch("hostile-mount", async (directory) => {
      const image = qcow2Sample("version 3", {
        snapshots: HOSTILE_NAMES.map((name, index) => ({ id: String(index + 1), name })),
      }).write(join(directory, "named.qcow2"));
      await mounted([image], { args: ["-r"] }, async (mount) => {
        const names = await checkSideFiles(mount, image);
        expect(names).toHaveLength(HOSTILE_NAMES.length);
        expect(new Set(names).size).toBe(HOSTILE_NAMES.length);
        for (const name of names) {
          expect(name).not.toMatch(UNPRINTABLE);
          expect(name).toMatch(/\.raw$/);
          expect(Buffer.byteLength(name)).toBeLessThanOrEqual(255);
        }
        const device = await outcomeByMount(mount.device(image));
        for (const name of names) {
          const snapshot = await outcomeByMount(join(snapshotsOf(mount, image), name));
          expect(disagreement(snapshot, device, "same"), name).toBeUndefined();
        }
        expectHealthyDaemon(mount);
      });
    });
  });

  it("65536 of them are listed in bounded memory", async () => {
    await withScratch("hostile-mount", async (directory) => {
      const path = manySnapshots(join(directory, "many.qcow2"), 65536, 0);
      await mounted([path], { args: ["-r"] }, async (mount) => {
        const names = readdirSync(snapshotsOf(mount, path));
        expect(new Set(names).size).toBe(65536);
        await outcomeByMount(join(snapshotsOf(mount, path), names[65535] ?? ""));
        expectHealthyDaemon(mount);
      });
    });
  });

  it.each([["deflate", 0], ...byScale([], [["zstd", 1] as const])] as const)(
    "8000 of them are read in bounded memory: %s",
    async (_label, compressionType) => {
      await withScratch("hostile-mount", async (directory) => {
        const path = manySnapshots(join(directory, "many.qcow2"), 8000, compressionType);
        await mounted([path], { args: ["-r"] }, async (mount) => {
          for (const name of readdirSync(snapshotsOf(mount, path))) {
            await readThroughCache(join(snapshotsOf(mount, path), name), 4096);
          }
          expectHealthyDaemon(mount);
        });
      });
    },
  );
});

function snapshotsOf(mount: Mount, image: string): string {
  return mount.device(image).replace(/\.raw$/, ".snapshots");
}

/** An image with one compressed cluster and `count` snapshots that share it, whose names and ids repeat. */
function manySnapshots(path: string, count: number, compressionType: 0 | 1): string {
  const text = Buffer.alloc(4096, "text");
  const stream = compressionType === 1 ? zstdStore(text) : deflate(text);
  const image = buildQcow2({
    clusterBits: 12,
    virtualSize: 65536,
    compressionType,
    clusters: { 0: { kind: "compressed", stream } },
    snapshots: [{ name: "s0" }],
  });
  const { offset, length } = image.region("snapshot 0");
  const entries = Array.from({ length: count }, (_, index) => {
    const entry = Buffer.from(image.bytes.subarray(offset, offset + length));
    entry.write(String(index % 10), entry.lastIndexOf("s") + 1);
    return entry;
  });
  image.setHeader("nb_snapshots", count).setHeader("snapshots_offset", image.bytes.length);
  writeFileSync(path, Buffer.concat([image.bytes, ...entries]));
  return path;
}
