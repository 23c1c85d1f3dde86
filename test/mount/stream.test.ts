// Streaming while the image is mounted: told by an extended attribute, beside readers and writers, to the end
// and beyond it, when the backing files are gone.

import { type FileHandle, open, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { asArray, asRecord, numberIn } from "../support/json.ts";
import { type Mount, mounted, refusedMount, startMount } from "../support/mounted.ts";
import { createImage, imageInfo, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run, until } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { makeStreamChain, STREAM_TOPS, type StreamChain } from "../support/stream-chains.ts";
import { casesOfTransport, itMainly, roundsOfTransport } from "../support/transport.ts";
import { expectRefusal } from "../support/tsimgfs.ts";
import { checkImage, expectClean, expectDisk } from "../support/write-images.ts";
import { withTmpfs } from "../support/write-tmpfs.ts";
import { readXattrs } from "../support/xattr.ts";

const MIB = 2 ** 20;
const XATTR = "user.tsimgfs.stream";
const [V3] = STREAM_TOPS;
/** Which are streamed from one end to the other, beside others, and killed meanwhile. */
const TOPS = casesOfTransport("stream", STREAM_TOPS, 1);
const BESIDE = casesOfTransport("beside", [V3, STREAM_TOPS[1], STREAM_TOPS[4]], 1);
const KILLED = casesOfTransport("killed", [V3, STREAM_TOPS[4]], 1);

async function tell(device: string, command: string): Promise<void> {
  await run("setfattr", ["-n", XATTR, "-v", command, device]);
}

/** What `setfattr` says of a command that is refused. */
async function refusalOf(device: string, command: string): Promise<string> {
  const { status, stderr } = await attempt("setfattr", ["-n", XATTR, "-v", command, device]);
  expect(status).toBe(1);
  return stderr.trim();
}

async function stateOf(device: string): Promise<string> {
  return (await run("getfattr", ["-n", XATTR, "--only-values", device])).stdout;
}

async function untilState(device: string, state: string): Promise<void> {
  let last = "";
  await until(
    `${device} is ${state}`,
    async () => {
      last = await stateOf(device);
      return last.startsWith(state);
    },
    60_000,
  ).catch((error: unknown) => {
    throw new Error(`${String(error)}; it is ${last}`);
  });
}

async function streamStats(
  mount: Mount,
  image: string,
): Promise<Readonly<Record<string, unknown>>> {
  const stats = asRecord(JSON.parse(await readFile(mount.stats(image), "utf8")));
  return asRecord(stats["stream"]);
}

/** Overwrites and removes all that was below an image. */
async function destroyBelow(chain: StreamChain): Promise<void> {
  for (const [index] of chain.below.entries()) {
    await writeFile(chain.pathBelow(index), Buffer.alloc(10 * MIB, 0xdb));
    await rm(chain.pathBelow(index));
  }
}

/** Reads a file without the page cache. */
async function expectDirect(device: string, expected: string): Promise<void> {
  await run("cmp", [device, expected]);
  await run("dd", [`if=${device}`, "iflag=nocache", "count=0", "status=none"]);
  await run("cmp", [device, expected]);
}

describe("streaming in a mount", () => {
  it.each(TOPS)("makes $name do without its backing files, live", async (top) => {
    await withScratch("stream", async (directory) => {
      const chain = await makeStreamChain(directory, top);
      await mounted([chain.image], {}, async (mount) => {
        const device = mount.device(chain.image);
        expect(await stateOf(device)).toBe("idle");
        await tell(device, "start");
        await untilState(device, "done");
        await chain.expectWholeOf(device);
        // Nobody has them any more: their locks are gone, and so is their name.
        for (const [index] of chain.below.entries()) {
          await run("qemu-io", ["-c", "quit", chain.pathBelow(index)]);
        }
        const files = await run("ls", ["-l", `/proc/${mount.daemonPid()}/fd`]);
        for (const name of chain.below) expect(files.stdout).not.toContain(`/${name}`);
        expect((await readXattrs(device)).has("user.tsimgfs.backing-file")).toBe(false);
        const stats = asRecord(JSON.parse(await readFile(mount.stats(chain.image), "utf8")));
        expect(stats["backing-filename"]).toBeUndefined();
        expect(asArray(stats["backing-chain"])).toHaveLength(1);
        const stream = asRecord(stats["stream"]);
        expect(stream).toMatchObject({ state: "done", done: stream["total"] });
        expect(numberIn(stream, "copied-bytes")).toBeGreaterThan(0);
        await destroyBelow(chain);
        await expectDirect(device, chain.expected);
        expect(await refusalOf(device, "start")).toMatch(/No such attribute$/);
      });
      await expectDisk(chain.image, chain.format, chain.expected);
      await expectClean(chain.image, chain.format);
      expect(asRecord(await imageInfo([chain.image]))["backing-filename"]).toBeUndefined();
    });
  });

  it("can be paused, go on, and be given up", async () => {
    await withScratch("stream", async (directory) => {
      const chain = await makeStreamChain(directory, V3, 40 * MIB);
      await mounted([chain.image], {}, async (mount) => {
        const device = mount.device(chain.image);
        await tell(device, "start=1M");
        await until("something is copied", async () => {
          return numberIn(await streamStats(mount, chain.image), "copied-bytes") > 0;
        });
        await tell(device, "pause");
        expect(await stateOf(device)).toMatch(/^paused \d+\/\d+$/);
        // One step may have been under way.
        await until("it pauses", async () => {
          const before = await stateOf(device);
          await sleep(300);
          return (await stateOf(device)) === before;
        });
        await tell(device, "start=1M");
        expect(await stateOf(device)).toMatch(/^running /);
        await tell(device, "cancel");
        expect(await stateOf(device)).toBe("idle");
        expect(await refusalOf(device, "pause")).toMatch(/Invalid argument$/);
        expect((await readXattrs(device)).get("user.tsimgfs.backing-file")).toBe("high.qcow2");
        await tell(device, "start=1M");
      });
      // Unmounted in the middle of it: nothing is lost, and the rest is left.
      await chain.expectStreamed("high.qcow2");
      await mounted([chain.image], { args: ["--stream"] }, async (mount) => {
        await untilState(mount.device(chain.image), "done");
      });
      await chain.expectStreamed(undefined);
    });
  });

  it("is done by the mount if the command is told to do it meanwhile", async () => {
    await withScratch("stream", async (directory) => {
      const chain = await makeStreamChain(directory, V3);
      await mounted([chain.image], {}, async (mount) => {
        const device = mount.device(chain.image);
        const how = `setfattr -n ${XATTR} -v start ${device}`;
        await expectRefusal(["stream", chain.image], [new RegExp(`is mounted; ${how}`)]);
      });
      await chain.expectStreamed("high.qcow2");
    });
  });

  it("refuses what makes no sense", async () => {
    await withScratch("stream", async (directory) => {
      const chain = await makeStreamChain(directory, V3);
      const plain = join(directory, "plain.qcow2");
      await createImage(plain, "qcow2", { size: MIB });
      await mounted([chain.image, plain], {}, async (mount) => {
        const device = mount.device(chain.image);
        expect(await refusalOf(device, "stop")).toMatch(/Invalid argument$/);
        expect(await refusalOf(device, "start=0")).toMatch(/Invalid argument$/);
        expect(await refusalOf(mount.device(plain), "start")).toMatch(/No such attribute$/);
        expect(await refusalOf(mount.stats(plain), "start")).toMatch(/not supported$/);
        const other = ["-n", "user.tsimgfs.format", "-v", "raw", device];
        expect((await attempt("setfattr", other)).stderr).toMatch(/not supported$/m);
        expect((await readXattrs(mount.device(plain))).has(XATTR)).toBe(false);
        expect(await stateOf(device)).toBe("idle");
      });
      await mounted([chain.image], { args: ["-r"] }, async (mount) => {
        expect(await refusalOf(mount.device(chain.image), "start")).toMatch(/Read-only/);
      });
      const line = await refusedMount([chain.image], { args: ["-r", "--stream"] });
      expect(line).toMatch(/--stream: writes to the images, and contradicts -r/);
      await run("qemu-img", ["snapshot", "-c", "old", chain.image]);
      await mounted([chain.image], { args: ["--stream"] }, async (mount) => {
        expect(await stateOf(mount.device(chain.image))).toBe("idle");
        const refusal = await refusalOf(mount.device(chain.image), "start");
        expect(refusal).toMatch(/not supported$/);
        const old = mount.snapshot(chain.image, "old");
        expect(await refusalOf(old, "start")).toMatch(/not permitted$/);
      });
    });
  });

  it.each(BESIDE)(
    "of $name goes on beside readers and writers, and they go on after it",
    async (top) => {
      await withScratch("stream", async (directory) => {
        const chain = await makeStreamChain(directory, top, 24 * MIB);
        const disk = await readFile(chain.expected);
        await mounted([chain.image], { args: ["--stream=24M"] }, async (mount) => {
          const device = mount.device(chain.image);
          let turnsLeft = 40;
          const isOver = async (): Promise<boolean> => {
            if ((await stateOf(device)).startsWith("done")) turnsLeft--;
            return turnsLeft <= 0;
          };
          const workers = [0, 1, 2, 3].map(async (part) => {
            const file = await open(device, "r+");
            try {
              await work(file, disk, part, isOver);
            } finally {
              await file.close();
            }
          });
          await Promise.all(workers);
          expect(await stateOf(device)).toMatch(/^done /);
          await destroyBelow(chain);
          await writeFile(chain.expected, disk);
          await expectDirect(device, chain.expected);
          const file = await open(device, "r+");
          await work(file, disk, 0, () => Promise.resolve(true));
          await file.close();
          await writeFile(chain.expected, disk);
          await expectSameBytes(device, chain.expected, "after the end");
        });
        await expectDisk(chain.image, chain.format, chain.expected);
        await expectClean(chain.image, chain.format);
      });
    },
  );

  it.each(KILLED)("of $name goes on after a daemon that was killed", async (top) => {
    await withScratch("stream", async (directory) => {
      const random = new Random(`killed daemon ${top.name}`);
      const chain = await makeStreamChain(directory, top, 24 * MIB);
      for (let kill = 0; kill < roundsOfTransport(byScale(3, 20)); kill++) {
        const mount = await startMount([chain.image], { args: ["--stream=10M"] });
        try {
          await sleep(random.below(400));
          process.kill(mount.daemonPid(), "SIGKILL");
        } finally {
          await mount.stop();
        }
        const { verdict, output } = await checkImage(chain.image, chain.format);
        expect(verdict, output).not.toBe("corrupt");
        await chain.expectWhole();
      }
      await mounted([chain.image], { args: ["--stream"] }, async (mount) => {
        const info = asRecord(await imageInfo(["-U", chain.image]));
        // One of the daemons may have come to the end.
        if (info["backing-filename"] === undefined) return;
        await untilState(mount.device(chain.image), "done");
      });
      await chain.expectStreamed(undefined);
    });
  });

  itMainly("that finds no space fails, and can be started again when there is some", async () => {
    await withTmpfs(64 * MIB, async (tmpfs) => {
      const base = join(tmpfs.directory, "base.raw");
      await writeFile(base, new Random("stream full").bytes(24 * MIB));
      const image = join(tmpfs.directory, "image.qcow2");
      await createImage(image, "qcow2", { backing: { file: "base.raw", format: "raw" } });
      await tmpfs.resize(34 * MIB);
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        await tell(device, "start");
        await untilState(device, "failed");
        expect((await readXattrs(device)).get("user.tsimgfs.backing-file")).toBe("base.raw");
        await run("cmp", [device, base]);
        await tmpfs.resize(64 * MIB);
        await tell(device, "start");
        await untilState(device, "done");
      });
      await expectClean(image);
      await expectDisk(image, "qcow2", base);
    });
  });

  itMainly("that cannot read a backing file fails, and leaves the rest as it is", async () => {
    await withScratch("stream", async (directory) => {
      const base = join(directory, "base.qcow2");
      await createImage(base, "qcow2", { size: 4 * MIB });
      await qemuIo(base, "qcow2", ["write -q -P 5 0 4M"]);
      const image = join(directory, "image.qcow2");
      await createImage(image, "qcow2", { backing: { file: base, format: "qcow2" } });
      await breakEntry(base, 9);
      await mounted([image], { args: ["--stream"] }, async (mount) => {
        const device = mount.device(image);
        await untilState(device, "failed");
        expect((await readXattrs(device)).get("user.tsimgfs.backing-file")).toBe(base);
        await tell(device, "start");
        await untilState(device, "failed");
      });
      await expectClean(image);
      expect(asRecord(await imageInfo([image]))["backing-filename"]).toBe(base);
    });
  });
});

/** Lets an entry of the first L2 table of a qcow2 image refer to what is no cluster. */
async function breakEntry(image: string, index: number): Promise<void> {
  const file = await open(image, "r+");
  const word = Buffer.alloc(8);
  const readWord = async (offset: number): Promise<number> => {
    await file.read(word, 0, 8, offset);
    return Number(word.readBigUInt64BE() & 0x00ff_ffff_ffff_fe00n);
  };
  // l1_table_offset, then the L2 table of the first L1 entry.
  const table = await readWord(await readWord(40));
  await file.write(Buffer.from("8000000000012345", "hex"), 0, 8, table + index * 8);
  await file.close();
}

/** Random reads and writes in every fourth block of 64 KiB, held against `disk`, until it is over. */
async function work(
  file: FileHandle,
  disk: Buffer,
  part: number,
  isOver: () => Promise<boolean>,
): Promise<void> {
  const random = new Random(`stream work ${part}`);
  const blocks = Math.floor(disk.length / 65536 / 4);
  for (let turn = 0; turn < 2000; turn++) {
    const start = (random.below(blocks) * 4 + part) * 65536;
    const from = start + random.below(60_000);
    const length = random.between(1, start + 65536 - from);
    if (random.below(3) === 0) {
      const bytes = random.below(3) === 0 ? Buffer.alloc(length) : random.bytes(length);
      bytes.copy(disk, from);
      const { bytesWritten } = await file.write(bytes, 0, length, from);
      expect(bytesWritten).toBe(length);
      if (random.below(20) === 0) await file.datasync();
    } else {
      const bytes = Buffer.alloc(length);
      const { bytesRead } = await file.read(bytes, 0, length, from);
      expect(bytesRead).toBe(length);
      const isSame = bytes.equals(disk.subarray(from, from + length));
      expect(isSame, `bytes from ${from} on, ${length}`).toBe(true);
    }
    if (turn % 10 === 0 && (await isOver())) return;
  }
}
