/**
 * Copy-on-read where something fails: what is read is right whatever becomes of the copy, no copy is made
 * of what was not read, and what was written meanwhile stays.
 */

import { describe, expect, it } from "vitest";
import { StorageError, TsimgfsError } from "../../../src/errors.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { COUNTER } from "../../../src/threads/counters.ts";
import { type Call, FAULT_WAYS, type Faults, FaultyFiles } from "../../support/faulty-files.ts";
import { buildQcow2 } from "../../support/qcow2-builder.ts";
import { Random } from "../../support/random.ts";
import { byScale } from "../../support/scale.ts";
import { expectBytes } from "../expect-bytes.ts";
import { OVERLAY_KINDS, type OverlayKind, putOverlay, spoilBacking } from "./overlays.ts";
import { type DiskFiles, readDisk, type WritableDisk, withDiskFiles } from "./writable-disk.ts";

const CLUSTER = 4096;
const NAME = "disk.qcow2";
const BASE = { backingFile: "base.raw", backingFormat: "raw" } as const;

const kindOf = (name: string): OverlayKind => {
  const found = OVERLAY_KINDS.find((kind) => kind.name === name);
  if (found === undefined) throw new Error(`no overlay with ${name}`);
  return found;
};

function failsWith(code: string, action: () => void): void {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(TsimgfsError);
    expect(error).toMatchObject({ code });
    return;
  }
  expect.fail(`nothing failed with ${code}`);
}

describe("a read that fails behind what it has fetched", () => {
  it("leaves no copy of what comes into its buffer later, and keeps nobody waiting", async () => {
    await withDiskFiles(async (files) => {
      const random = new Random("fails behind");
      const backing = random.bytes(4 * CLUSTER);
      files.put("base.raw", backing);
      const image = buildQcow2({
        ...{ clusterBits: 12, virtualSize: 4 * CLUSTER, ...BASE },
        clusters: { 1: { kind: "compressed", stream: Buffer.from("no stream at all") } },
      });
      files.put(NAME, image.bytes);
      files.use(NAME, (writable) => {
        const { disk } = writable;
        const target = NativeBuffer.allocate(4 * CLUSTER);
        failsWith("EIO", () => disk.readFirst(0, 2 * CLUSTER, target, 0));
        // Another thread wants to write to what was fetched.
        const other = writable.asOtherThread();
        target.bytes.fill(0xbb);
        other.write(100, 50, target, 0);
        target.bytes.fill(0xaa);
        disk.readFirst(2 * CLUSTER, 2 * CLUSTER, target, 0);
        expectBytes(target.bytes.subarray(0, 2 * CLUSTER), backing.subarray(2 * CLUSTER));
        disk.storeFetched();
      });
      spoilBacking(files);
      const expected = Buffer.from(backing.subarray(0, CLUSTER));
      expected.fill(0xbb, 100, 150);
      files.use(NAME, ({ disk }) => {
        expectBytes(readDisk(disk, 0, CLUSTER), expected);
        expectBytes(readDisk(disk, 2 * CLUSTER, 2 * CLUSTER), backing.subarray(2 * CLUSTER));
      });
    });
  });
});

/** Reads of `base.raw` that touch a range fail. */
class UnreadableBase extends FaultyFiles {
  constructor(start: number, end: number) {
    super();
    this.readFaults = ({ path, offset, length }) =>
      path.endsWith("base.raw") && offset < end && start < offset + length
        ? { code: "EIO" }
        : "works";
  }
}

describe("a backing file that cannot be read in one place", () => {
  it("can be read beside it, within the same cluster too", async () => {
    await withDiskFiles(async (files) => {
      const kind = kindOf("clusters of 4096 bytes");
      const content = putOverlay(files, kind, { clusters: "....", backing: "DDDD" });
      const attachFile = new UnreadableBase(2 * CLUSTER + 1024, 2 * CLUSTER + 1025).attach;
      files.use(
        kind.file,
        ({ disk }) => {
          expectBytes(readDisk(disk, 2 * CLUSTER, 1024), content.subarray(8192, 8192 + 1024));
          failsWith("EIO", () => readDisk(disk, 0, content.length));
          failsWith("EIO", () => readDisk(disk, 2 * CLUSTER, CLUSTER));
          expectBytes(readDisk(disk, 3 * CLUSTER - 9, 20), content.subarray(12279, 12299));
          expectBytes(readDisk(disk, 3 * CLUSTER, 20), content.subarray(12288, 12308));
        },
        { attachFile },
      );
      await files.expectClean(kind.file);
      expect(await files.clusters(kind.file, CLUSTER)).toBe("dddD");
    });
  });
});

/** Writes to the L2 tables of an overlay fail. */
function failingTables(tables: (call: Call) => boolean): Faults {
  return (call) => (call.kind === "write" && tables(call) ? { code: "ENOSPC" } : "works");
}

describe("copies that cannot be linked", () => {
  const clusters = "D".padEnd(40, ".");
  const backing = "D".repeat(40);

  /** Calls `body` with a disk that was read as a whole, when its table cannot be written to. */
  async function withUnlinked(
    body: (disk: WritableDisk, content: Buffer, files: FaultyFiles) => void,
  ): Promise<void> {
    await withDiskFiles(async (files) => {
      const kind = kindOf("clusters of 4096 bytes");
      const content = putOverlay(files, kind, { clusters, backing });
      const faulty = new FaultyFiles();
      const counters = new Float64Array(16);
      files.use(
        kind.file,
        (disk) => {
          readDisk(disk.disk);
          const table = files.bytes(kind.file).readBigUInt64BE(l1Offset(files)) & 0xff_ffff_ffffn;
          const at = Number(table);
          faulty.faults = failingTables(({ offset }) => at <= offset && offset < at + CLUSTER);
          body(disk, content, faulty);
          expect(counters[COUNTER.copyOnReadFailed]).toBe(0);
        },
        { attachFile: faulty.attach, counters },
      );
      await files.expectClean(kind.file);
      expectBytes(await files.converted(kind.file), content);
    });
  }

  const l1Offset = (files: DiskFiles): number => Number(files.bytes(NAME).readBigUInt64BE(40));

  it("are no matter of who wants to have his writes durable", async () => {
    await withUnlinked((disk, content, faulty) => {
      disk.fill(10, 20, 7);
      content.fill(7, 10, 30);
      disk.disk.flush();
      disk.disk.maintain();
      expectBytes(disk.read(), content, "meanwhile");
      expect(faulty.calls.some(({ kind }) => kind === "sync")).toBe(true);
    });
  });

  it("wait for better times", async () => {
    await withDiskFiles(async (files) => {
      const kind = kindOf("clusters of 4096 bytes");
      const content = putOverlay(files, kind, { clusters, backing });
      const faulty = new FaultyFiles();
      files.use(
        kind.file,
        ({ disk }) => {
          readDisk(disk);
          faulty.faults = failingTables(() => true);
          disk.flush();
          faulty.faults = () => "works";
          disk.flush();
        },
        { attachFile: faulty.attach },
      );
      await files.expectClean(kind.file);
      expect(await files.clusters(kind.file, CLUSTER)).toBe("D".repeat(40));
      expectBytes(await files.converted(kind.file), content);
    });
  });

  it.each([1, 2, 3])(
    "may be linked in part: table %i of three cannot be written to",
    async (nth) => {
      await withDiskFiles(async (files) => {
        // One run of copies, whose entries are in three tables: they exist, and say nothing yet.
        const size = 180 * 512;
        const content = new Random("three tables").bytes(size);
        files.put("base.raw", content);
        const none = { kind: "entry", entry: 0 } as const;
        const image = {
          clusterBits: 9,
          virtualSize: size,
          clusters: { 0: none, 64: none, 128: none },
        };
        const before = buildQcow2({ ...image, ...BASE });
        const tables = [0, 1, 2].map((index) => before.region(`l2 ${index}`).offset);
        const isTable = ({ offset }: Call): boolean =>
          tables.some((table) => table <= offset && offset < table + 512);
        for (const isForGood of [false, true]) {
          files.put("base.raw", content);
          files.put(NAME, before.bytes);
          const faulty = new FaultyFiles();
          const written = Buffer.from(content);
          files.use(
            NAME,
            (disk) => {
              disk.read();
              let writes = 0;
              faulty.faults = ({ kind }) =>
                kind === "write" && ++writes === nth ? { code: "EIO", half: true } : "works";
              disk.disk.flush();
              expect(writes).toBeGreaterThanOrEqual(nth);
              faulty.faults = failingTables((call) => isForGood && isTable(call));
              for (const cluster of [10, 70, 150]) {
                try {
                  disk.fill(cluster * 512 + 7, 100, cluster);
                  written.fill(cluster, cluster * 512 + 7, cluster * 512 + 107);
                } catch (error) {
                  expect(error).toMatchObject({ code: "ENOSPC" });
                }
              }
              expectBytes(disk.read(), written, "meanwhile");
            },
            { attachFile: faulty.attach },
          );
          await files.expectClean(NAME);
          expectBytes(await files.converted(NAME), written, "afterwards");
          files.use(NAME, (disk) => expectBytes(disk.read(), written, "opened again"));
          await files.expectClean(NAME);
          spoilBacking(files);
          expectBytes(await files.converted(NAME), written, "over another backing file");
        }
      });
    },
  );

  it("do not come over what was written in the meantime", async () => {
    await withDiskFiles(async (files) => {
      // Sub-clusters that are zeros are told to the table after the others: in between it fails.
      const random = new Random("half linked");
      const parts = Array.from({ length: 64 }, (_, index) =>
        index % 2 === 0 ? random.bytes(512) : Buffer.alloc(512),
      );
      files.put("base.raw", Buffer.concat(parts));
      const size = { clusterBits: 14, virtualSize: 2 * 16384 };
      files.put(NAME, buildQcow2({ ...size, ...BASE, extendedL2: true }).bytes);
      const content = Buffer.concat(parts);
      const faulty = new FaultyFiles();
      files.use(
        NAME,
        (writable) => {
          const { disk } = writable;
          readDisk(disk);
          let tables = 0;
          faulty.faults = ({ kind, length }) =>
            kind === "write" && length <= 64 && tables++ > 0 ? { code: "EIO" } : "works";
          disk.flush();
          const target = NativeBuffer.allocate(512);
          target.bytes.fill(0x77);
          for (const offset of [512, 3 * 512, 40 * 512 + 512]) {
            try {
              disk.write(offset, 512, target, 0);
              content.fill(0x77, offset, offset + 512);
            } catch (error) {
              expect(error).toBeInstanceOf(StorageError);
            }
          }
          faulty.faults = () => "works";
          disk.flush();
          expectBytes(readDisk(disk), content);
        },
        { attachFile: faulty.attach },
      );
      await files.expectClean(NAME);
      expectBytes(await files.converted(NAME), content);
    });
  });
});

const FAILING_KINDS = ["clusters of 512 bytes", "v2", "sub-clusters", "a snapshot", "QED"];

describe.each(FAILING_KINDS.map(kindOf))(
  "an overlay with $name that cannot be written to",
  (kind) => {
    const clusterSize = 2 ** kind.clusterBits;
    const clusters = "..D.............";
    const backing = "DD0D0DD0000DDD0D";

    /** Reads and some writes; `content` is what must be there; returns what reads did, and their calls. */
    function session(
      files: DiskFiles,
      faulty: FaultyFiles,
      content: Buffer,
    ): { readonly counters: Float64Array; readonly copying: readonly number[] } {
      const counters = new Float64Array(16);
      const copying: number[] = [];
      const disk = files.open(kind.file, { attachFile: faulty.attach, counters });
      const random = new Random(`failing ${kind.name}`);
      const tryTo = (action: () => void): boolean => {
        try {
          action();
          return true;
        } catch (error) {
          if (!(error instanceof TsimgfsError)) throw error;
          return false;
        }
      };
      const change = (offset: number, value: number): void => {
        const old = readDisk(disk.disk, offset, 300);
        if (tryTo(() => disk.fill(offset, 300, value))) content.fill(value, offset, offset + 300);
        else {
          // Whatever became of it, it is what reads show from now on.
          const shown = readDisk(disk.disk, offset, 300);
          for (const [at, byte] of shown.entries()) expect([old[at], value]).toContain(byte);
          shown.copy(content, offset);
        }
      };
      const expectShown = (offset: number, length: number, message: string): void => {
        const before = faulty.calls.length;
        const shown = readDisk(disk.disk, offset, length);
        for (const [index, call] of faulty.calls.slice(before).entries()) {
          if (call.kind === "write") copying.push(before + index);
        }
        expectBytes(shown, content.subarray(offset, offset + length), message);
      };
      for (let turn = 0; turn < 6; turn++) {
        const offset = random.below(content.length - 2 * clusterSize);
        expectShown(offset, random.between(1, 2 * clusterSize), `turn ${turn}`);
      }
      change(clusterSize + 5, 0x31);
      expectShown(0, content.length, "before a flush");
      tryTo(() => disk.disk.flush());
      tryTo(() => disk.disk.maintain());
      change(4 * clusterSize - 100, 0x32);
      expectBytes(disk.read(), content, "in the end");
      tryTo(() => disk.close());
      return { counters, copying };
    }

    it.each(FAULT_WAYS)(
      "is read as it is when a call fails $name",
      async ({ faults }) => {
        await withDiskFiles(async (files) => {
          const dry = putOverlay(files, kind, { clusters, backing });
          const works = new FaultyFiles();
          const { copying } = session(files, works, dry);
          const { length } = works.calls;
          const stride = byScale(kind.file === "disk.qed" ? 5 : 9, 1);
          const random = new Random(kind.name);
          // One of them makes a copy fail, wherever the stride falls.
          const sample = new Set([
            copying[random.below(copying.length)] ?? expect.fail("no copies"),
          ]);
          for (let n = random.below(stride); n < length; n += stride) sample.add(n);
          const problems: string[] = [];
          let failures = 0;
          for (const n of sample) {
            const content = putOverlay(files, kind, { clusters, backing });
            const faulty = new FaultyFiles(faults(n));
            try {
              const { counters } = session(files, faulty, content);
              failures += counters[COUNTER.copyOnReadFailed] ?? 0;
              await files.check(kind.file);
              files.use(kind.file, ({ disk }) =>
                expectBytes(readDisk(disk), content, "opened again"),
              );
              if (kind.file === "disk.qed") await files.check(kind.file);
              else await files.expectClean(kind.file);
              spoilBacking(files);
              expectBytes(await files.converted(kind.file), content, "as qemu-img reads it");
            } catch (error) {
              const call = faulty.calls[n];
              const what = `${call?.kind} 0x${call?.offset.toString(16)}+${call?.length}`;
              problems.push(`call ${n} of ${length} (${what}): ${String(error).slice(0, 400)}`);
            }
          }
          expect(problems).toEqual([]);
          expect(failures).toBeGreaterThan(0);
        });
      },
      600_000,
    );
  },
);
