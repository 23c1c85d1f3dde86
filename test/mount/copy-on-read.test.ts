// Copy-on-read through the kernel: what was read once is in the overlay, and is read nowhere else any more.

import { copyFile, readFile, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { parseMap } from "../support/disk-map.ts";
import { expectEither } from "../support/either-version.ts";
import { type FsxSession, runFsx } from "../support/fsx-run.ts";
import { asRecord, numberIn } from "../support/json.ts";
import { type Mount, mounted, startMount } from "../support/mounted.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { convertToRaw, createImage, type ImageFormat, imageMap } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run, runJson, until } from "../support/run.ts";
import { byScale, LONG } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { casesOfTransport, describeMainly, roundsOfTransport } from "../support/transport.ts";
import {
  checkImage,
  expectClean,
  expectDisk,
  expectOrdered,
  fileUsage,
} from "../support/write-images.ts";
import { withTmpfs } from "../support/write-tmpfs.ts";

const MIB = 2 ** 20;
const SIZE = byScale(16, 96) * MIB;
/** Backing files are zeros in runs of this many bytes. */
const RUN = 64 * 1024;
const READERS = 10;

interface Kind {
  readonly name: string;
  readonly format: ImageFormat;
  readonly clusterSize: number;
  readonly options: Readonly<Record<string, string | number>>;
}

const qcow2 = (
  name: string,
  clusterSize: number,
  options: Readonly<Record<string, string | number>> = {},
): Kind => ({
  ...{ name, format: "qcow2", clusterSize },
  options: { cluster_size: clusterSize, ...options },
});

const MAIN = qcow2("v3", RUN);
const V2 = qcow2("v2", RUN, { compat: "0.10" });
const EXTENDED = qcow2("extended L2", 128 * 1024, { extended_l2: "on" });
const QED: Kind = {
  ...{ name: "QED", format: "qed", clusterSize: RUN },
  options: { cluster_size: RUN },
};
const KINDS: readonly Kind[] = [
  MAIN,
  qcow2("clusters of 4 KiB", 4096),
  qcow2("clusters of 2 MiB", 2 * MIB),
  EXTENDED,
  V2,
  QED,
];

interface Overlay {
  readonly kind: Kind;
  readonly path: string;
  readonly base: string;
  /** What the disk contains. */
  readonly expected: string;
}

/** Bytes of which about half are zeros, in whole runs. */
function halfZeros(label: string, size: number): { bytes: Buffer; zeroRuns: number } {
  const random = new Random(label);
  const noise = random.bytes(RUN + 4093);
  const bytes = Buffer.alloc(size);
  let zeroRuns = 0;
  for (let offset = 0; offset < size; offset += RUN) {
    if (random.below(2) === 0) zeroRuns++;
    else {
      const start = random.below(4093);
      noise.copy(bytes, offset, start, start + RUN);
    }
  }
  return { bytes, zeroRuns };
}

/** Those that differ most in what they do. */
const QUICK_KINDS = [MAIN, EXTENDED, QED];

/** An overlay without clusters in one directory, its backing file in another. */
async function makeOverlay(
  directory: string,
  kind: Kind,
  { contents, baseDirectory = directory }: { contents: Buffer; baseDirectory?: string },
): Promise<Overlay> {
  const base = join(baseDirectory, "base.raw");
  const expected = join(baseDirectory, "expected.raw");
  await writeFile(base, contents);
  await writeFile(expected, contents);
  const path = join(directory, `disk.${kind.format}`);
  const backing = { file: base, format: "raw" } as const;
  await createImage(path, kind.format, { options: kind.options, backing });
  return { kind, path, base, expected };
}

/** Overwrites a backing file in place. */
async function spoil(base: string): Promise<void> {
  const { size } = await stat(base);
  await writeFile(base, Buffer.alloc(size, 0xee), { flag: "r+" });
}

async function ioCounters(mount: Mount, image: string): Promise<(name: string) => number> {
  const io = asRecord(asRecord(await runJson("cat", [mount.stats(image)]))["io"]);
  const { read } = asRecord(io["operations"]);
  return (name) => numberIn(name === "errors" ? asRecord(read) : io, name);
}

async function dropCache(device: string): Promise<void> {
  await run("dd", [`if=${device}`, "iflag=nocache", "count=0", "status=none"]);
}

/** Random reads of 4 KiB past the page cache, each block once per job. */
function randomReads(device: string, jobs: number): string[] {
  return [
    ...["--name=read", `--filename=${device}`, "--readonly", "--allow_file_create=0"],
    ...["--rw=randread", "--bs=4k", "--direct=1", "--ioengine=psync"],
    ...[`--numjobs=${jobs}`, `--size=${SIZE}`, "--minimal"],
  ];
}

const WAYS: readonly {
  readonly name: string;
  readonly isUsual: boolean;
  readonly read: (device: string, expected: string) => Promise<unknown>;
}[] = [
  {
    name: "dd bs=1M",
    isUsual: false,
    read: (device) => run("dd", [`if=${device}`, "of=/dev/null", "bs=1M", "status=none"]),
  },
  {
    name: "4 KiB at random, O_DIRECT",
    isUsual: false,
    read: (device) => run("fio", randomReads(device, 1)),
  },
  {
    name: `${READERS} readers at once`,
    isUsual: true,
    read: (device, expected) =>
      Promise.all([
        run("fio", randomReads(device, READERS / 2)),
        ...Array.from({ length: READERS / 2 }, (_, index) => {
          const skip = Math.floor((SIZE / READERS) * index);
          return run("cmp", ["-i", String(skip), device, expected]);
        }),
      ]),
  },
];

describe.each(casesOfTransport("ways", WAYS, 1))(
  "an overlay that was read as a whole by $name",
  ({ name, read, isUsual }) => {
    it.each(casesOfTransport(name, isUsual || LONG ? KINDS : QUICK_KINDS.slice(0, 1), 1))(
      "does without its backing file: $name",
      async (kind) => {
        await withScratch("copies", async (directory) => {
          const { bytes, zeroRuns } = halfZeros(`copies ${kind.name}`, SIZE);
          const overlay = await makeOverlay(directory, kind, { contents: bytes });
          const { path, expected } = overlay;
          await mounted([path], {}, async (mount) => {
            const device = mount.device(path);
            await read(device, expected);
            const counter = await ioCounters(mount, path);
            const stored = counter("copy-on-read-stored") + counter("copy-on-read-zero");
            expect(stored, "clusters that were stored, each once").toBe(SIZE / kind.clusterSize);
            if (kind === MAIN) expect(counter("copy-on-read-zero")).toBe(zeroRuns);
            expect(counter("copy-on-read-failed")).toBe(0);
            await spoil(overlay.base);
            await dropCache(device);
            await expectSameBytes(device, expected, "in the same mount");
          });
          await expectClean(path, kind.format);
          const before = await stat(path);
          await mounted([path], {}, async (mount) => {
            await expectSameBytes(mount.device(path), expected, "in the next mount");
          });
          // Leaks of version 2 are looked for by every writer.
          if (kind !== V2) {
            expect((await stat(path)).mtimeMs, "nothing was left to store").toBe(before.mtimeMs);
          }
          await run("qemu-img", ["rebase", "-u", "-f", kind.format, "-b", "", path]);
          await expectDisk(path, kind.format, expected);
        });
      },
    );
  },
);

describe("an overlay that was read a little", () => {
  it("has that before long, also if nobody asks for it and the daemon is killed then", async () => {
    await withScratch("little", async (directory) => {
      const contents = new Random("little").bytes(SIZE);
      const { path, expected } = await makeOverlay(directory, MAIN, { contents });
      const mount = await startMount([path]);
      try {
        const head = ["bs=1M", "count=1", "iflag=direct", "status=none"];
        await run("dd", [`if=${mount.device(path)}`, "of=/dev/null", ...head]);
        await until("what was read is in the overlay", async () => {
          const [first] = parseMap(await imageMap(["-U", "-f", "qcow2", path]));
          return first?.depth === 0 && first.length === MIB;
        });
        process.kill(mount.daemonPid(), "SIGKILL");
      } finally {
        await mount.stop();
      }
      await mounted([path], {}, async () => {});
      await expectClean(path);
      await expectDisk(path, "qcow2", expected);
    });
  });
});

describeMainly("an overlay of which half is zeros", () => {
  it("takes no more than the data, and one per cent", async () => {
    await withScratch("compact", async (directory) => {
      // Of 64 MiB, tables alone take a hundredth.
      const size = 128 * MIB;
      const { bytes, zeroRuns } = halfZeros("compact", size);
      const { path } = await makeOverlay(directory, MAIN, { contents: bytes });
      await mounted([path], {}, (mount) =>
        run("dd", [`if=${mount.device(path)}`, "of=/dev/null", "bs=1M", "status=none"]),
      );
      const data = size - zeroRuns * RUN;
      const { length, allocated } = await fileUsage(path);
      expect(allocated).toBeLessThanOrEqual(data * 1.01);
      expect(length).toBeLessThanOrEqual(data * 1.01);
    });
  });
});

const UNTOUCHED = casesOfTransport("untouched", ["-r", "--no-copy-on-read"], 1);

describe("a mount that copies nothing", () => {
  it.each(UNTOUCHED)("leaves the image as it is: %s", async (option) => {
    for (const kind of [MAIN, V2]) {
      await withScratch("untouched", async (directory) => {
        const contents = halfZeros("untouched", SIZE).bytes;
        const { path, expected } = await makeOverlay(directory, kind, { contents });
        const before = await readFile(path);
        await utimes(path, 1_000_000, 1_000_000);
        await mounted([path], { args: [option] }, async (mount) => {
          await expectSameBytes(mount.device(path), expected, option);
          const counter = await ioCounters(mount, path);
          expect(counter("copy-on-read-stored") + counter("copy-on-read-zero")).toBe(0);
        });
        expect((await readFile(path)).equals(before)).toBe(true);
        // Leaks of version 2 are looked for by every writer.
        if (kind !== V2) expect((await stat(path)).mtimeMs).toBe(1_000_000_000);
      });
    }
  });
});

const FULL_KINDS = casesOfTransport("full", byScale(QUICK_KINDS, KINDS), 1);
const FULL_AT_THE_END = casesOfTransport("full at the end", [MAIN, V2], 1);

describe.skipIf(!IS_ROOT)("a host without space for copies (needs root)", () => {
  it.each(FULL_KINDS)("is read all the same, and stores again later: $name", async (kind) => {
    await withScratch("full", async (baseDirectory) => {
      await withTmpfs(6 * MIB + 4 * kind.clusterSize, async (tmpfs) => {
        const contents = new Random("full").bytes(SIZE);
        const { path, base, expected } = await makeOverlay(tmpfs.directory, kind, {
          ...{ contents, baseDirectory },
        });
        await mounted([path], {}, async (mount) => {
          const device = mount.device(path);
          await expectSameBytes(device, expected, "without space");
          const full = await ioCounters(mount, path);
          expect(full("copy-on-read-failed")).toBeGreaterThan(0);
          expect(full("errors")).toBe(0);
          await run("sync", [device]);
          await tmpfs.resize(SIZE * 2);
          await dropCache(device);
          await expectSameBytes(device, expected, "with space again");
          const roomy = await ioCounters(mount, path);
          expect(roomy("copy-on-read-failed")).toBe(full("copy-on-read-failed"));
          await spoil(base);
          await dropCache(device);
          await expectSameBytes(device, expected, "from the overlay alone");
        });
        await expectOrdered(path, kind.format);
        await expectDisk(path, kind.format, expected);
      });
    });
  });

  it.each(FULL_AT_THE_END)("ends orderly while it has none: $name", async (kind) => {
    await withScratch("full", async (baseDirectory) => {
      await withTmpfs(6 * MIB, async (tmpfs) => {
        const contents = new Random("full at the end").bytes(SIZE);
        const { path, expected } = await makeOverlay(tmpfs.directory, kind, {
          ...{ contents, baseDirectory },
        });
        await mounted([path], {}, (mount) =>
          expectSameBytes(mount.device(path), expected, "without space"),
        );
        await expectClean(path);
        await expectDisk(path, kind.format, expected);
      });
    });
  });
});

const KILLED_KINDS = casesOfTransport(
  "killed",
  byScale(
    KINDS.filter(({ name }) => name !== "clusters of 2 MiB"),
    KINDS,
  ),
  1,
);

describe("a daemon that is killed while it copies", () => {
  it.each(KILLED_KINDS)(
    "loses nothing that was written, and leaks at most: $name",
    async (kind) => {
      const random = new Random(`killed ${kind.name}`);
      await withScratch("killed", async (directory) => {
        const contents = halfZeros(`killed ${kind.name}`, SIZE).bytes;
        const overlay = await makeOverlay(directory, kind, { contents });
        for (let kill = 0; kill < roundsOfTransport(byScale(2, 10)); kill++) {
          await killed(overlay, random);
        }
        await mounted([overlay.path], {}, async (mount) => {
          await expectSameBytes(mount.device(overlay.path), overlay.expected, "in the end");
          await spoil(overlay.base);
          await dropCache(mount.device(overlay.path));
          await expectSameBytes(mount.device(overlay.path), overlay.expected, "on its own");
        });
        await expectOrdered(overlay.path, kind.format);
        await expectDisk(overlay.path, kind.format, overlay.expected);
      });
    },
  );

  /** Readers and writers of a mount whose daemon is killed; then the image is looked at. */
  async function killed({ path, expected, kind }: Overlay, random: Random): Promise<void> {
    const attempted = `${expected}.attempted`;
    const actual = `${expected}.actual`;
    await copyFile(expected, attempted);
    const mount = await startMount([path]);
    try {
      const device = mount.device(path);
      const session: FsxSession = {
        ...{ device, expected, attempted, size: SIZE, unit: kind.clusterSize },
        ...{ maxLength: 200_000, access: "direct", mappings: false, processes: 2 },
        end: "until-gone",
      };
      await runFsx(random, session, async () => {
        const readers = attempt("fio", randomReads(device, 4));
        await sleep(random.below(600));
        process.kill(mount.daemonPid(), "SIGKILL");
        await readers;
      });
    } catch (error) {
      throw await mount.explain(error);
    } finally {
      await mount.stop();
    }
    const { verdict, output } = await checkImage(path, kind.format);
    expect(verdict, output).not.toBe("corrupt");
    await convertToRaw(path, kind.format, actual);
    await expectEither(actual, { expected, attempted });
    await copyFile(actual, expected);
  }
});
