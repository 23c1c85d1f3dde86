/** READDIR and READDIRPLUS: any sizes and offsets, walked as the kernel walks them. */

import { constants } from "node:os";
import { describe, expect, it } from "vitest";
import { OPCODE } from "../../support/fuse-opcodes.ts";
import { qcow2Bytes } from "../../support/qcow2-builder.ts";
import { withTree } from "../tree/sample-tree.ts";
import { Caller, readArguments } from "./call.ts";

const { ESTALE, ENOTDIR } = constants.errno;
const ROOT = 1;
const SNAPSHOTS = 18;
const COUNT = 40;

interface Entry {
  readonly name: string;
  readonly ino: bigint;
  readonly next: bigint;
  readonly type: number;
  /** Of READDIRPLUS: the node id in front. */
  readonly nodeid: bigint | undefined;
}

/** Takes a reply apart: `fuse_dirent`, 24 bytes and a name, padded to 8; with `fuse_entry_out` in front. */
function parse(payload: Buffer, plus: boolean): Entry[] {
  const entries: Entry[] = [];
  for (let at = 0; at < payload.length; ) {
    const head = plus ? 128 : 0;
    const dirent = payload.subarray(at + head);
    const length = dirent.readUInt32LE(16);
    entries.push({
      name: dirent.subarray(24, 24 + length).toString(),
      ino: dirent.readBigUInt64LE(0),
      next: dirent.readBigUInt64LE(8),
      type: dirent.readUInt32LE(20),
      nodeid: plus ? payload.readBigUInt64LE(at) : undefined,
    });
    const padded = Math.ceil((24 + length) / 8) * 8;
    expect([...dirent.subarray(24 + length, padded)].every((byte) => byte === 0)).toBe(true);
    at += head + padded;
    expect(at).toBeLessThanOrEqual(payload.length);
  }
  return entries;
}

const snapshotNames = Array.from(
  { length: COUNT },
  (_, index) => `${"s".repeat(index * 5)}-${index}`,
);

async function withCaller(body: (caller: Caller) => void): Promise<void> {
  const snapshots = snapshotNames.map((name) => ({ name }));
  const image = qcow2Bytes({ clusterBits: 9, virtualSize: 1024, snapshots });
  await withTree([["disk.qcow2", image]], ({ tree }) => {
    body(new Caller({ tree, ownership: { uid: 0, gid: 0, umask: undefined } }));
  });
}

const FORMS = [
  { name: "READDIR", opcode: OPCODE.readdir, plus: false },
  { name: "READDIRPLUS", opcode: OPCODE.readdirplus, plus: true },
] as const;

describe.each(FORMS)("$name", ({ opcode, plus }) => {
  const list = (caller: Caller, nodeid: number, offset: number | bigint, size: number): Entry[] => {
    const { result, payload } = caller.call(opcode, nodeid, readArguments(offset, size));
    expect(result).toBeGreaterThanOrEqual(0);
    expect(result).toBeLessThanOrEqual(size);
    return parse(payload, plus);
  };

  it("lists the dots, then what is in the directory, with types and ids", async () => {
    await withCaller((caller) => {
      const entries = list(caller, ROOT, 0, 65536);
      expect(entries.map(({ name, ino, type }) => [name, ino, type])).toEqual([
        [".", 1n, 4],
        ["..", 1n, 4],
        ["disk.raw", 16n, 8],
        ["disk.stats.json", 17n, 8],
        ["disk.snapshots", 18n, 4],
        ["disk.partitions", 19n, 4],
        ["metrics", 2n, 8],
      ]);
      expect(entries.map(({ next }) => next)).toEqual([1n, 2n, 3n, 4n, 5n, 6n, 7n]);
    });
  });

  it("names the parent of a directory", async () => {
    await withCaller((caller) => {
      const [dot, dots] = list(caller, SNAPSHOTS, 0, 65536);
      expect([dot?.ino, dots?.ino]).toEqual([18n, 1n]);
    });
  });

  it.each([180, 256, 400, 1000, 4096, 65536])(
    "lists every entry once in replies of %i bytes",
    async (size) => {
      await withCaller((caller) => {
        const names: string[] = [];
        let offset = 0n;
        for (;;) {
          // The longest entry needs 128 + 24 + 203 bytes.
          const entries = list(caller, SNAPSHOTS, offset, Math.max(size, plus ? 360 : 232));
          if (entries.length === 0) break;
          names.push(...entries.map(({ name }) => name));
          offset = entries.at(-1)?.next ?? 0n;
        }
        expect(names).toEqual([".", "..", ...snapshotNames.map((name) => `${name}.raw`)]);
      });
    },
  );

  it("goes on from the cookie of any entry", async () => {
    await withCaller((caller) => {
      const all = list(caller, SNAPSHOTS, 0, 65536);
      expect(all).toHaveLength(COUNT + 2);
      for (const [index, { next }] of all.entries()) {
        const rest = list(caller, SNAPSHOTS, next, 65536);
        expect(rest).toEqual(all.slice(index + 1));
      }
    });
  });

  it("puts nothing where the first entry does not fit, and an entry that just fits", async () => {
    await withCaller((caller) => {
      // "." takes 24 + 1 bytes, padded.
      const least = (plus ? 128 : 0) + 32;
      expect(list(caller, ROOT, 0, 0)).toHaveLength(0);
      expect(list(caller, ROOT, 0, least - 1)).toHaveLength(0);
      expect(list(caller, ROOT, 0, least)).toHaveLength(1);
      expect(list(caller, ROOT, 0, 2 * least - 1)).toHaveLength(1);
    });
  });

  it.each([7, 8, 1000, 2 ** 40, 2n ** 60n, 2n ** 63n - 1n])(
    "is at the end from offset %i on",
    async (offset) => {
      await withCaller((caller) => expect(list(caller, ROOT, offset, 4096)).toEqual([]));
    },
  );

  it("puts no more than a reply holds, whatever size is asked for", async () => {
    await withTree([["disk.qcow2", qcow2Bytes()]], ({ tree }) => {
      const small = new Caller({ tree, ownership: { uid: 0, gid: 0, umask: undefined } }, 200);
      const { payload } = small.call(opcode, ROOT, readArguments(0, 0xffff_ffff));
      expect(payload.length).toBeLessThanOrEqual(200);
      expect(parse(payload, plus).length).toBeGreaterThan(0);
    });
  });

  it("refuses files and nodes that are not there", async () => {
    await withCaller((caller) => {
      expect(caller.call(opcode, 16, readArguments(0, 4096)).result).toBe(-ENOTDIR);
      expect(caller.call(opcode, 999, readArguments(0, 4096)).result).toBe(-ESTALE);
    });
  });
});

describe("READDIRPLUS", () => {
  it("counts as a look-up for all entries but the dots", async () => {
    await withCaller((caller) => {
      const { payload } = caller.call(OPCODE.readdirplus, ROOT, readArguments(0, 65536));
      const nodeids = parse(payload, true).map(({ nodeid }) => nodeid);
      expect(nodeids).toEqual([0n, 0n, 16n, 17n, 18n, 19n, 2n]);
    });
  });
});
