// The background process itself: detached, small, without leaks, logging when asked, alive after bad requests.

import { open, readdir, readFile, readlink, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { residentBytes } from "../support/daemon-processes.ts";
import { expectSameBytes } from "../support/device-content.ts";
import { withProgram } from "../support/foreground.ts";
import { mounted } from "../support/mounted.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { attempt, run } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { roundsOfTransport } from "../support/transport.ts";

const MIB = 2 ** 20;

async function openFiles(pid: number): Promise<number> {
  return (await readdir(`/proc/${pid}/fd`)).length;
}

/**
 * The open files of a daemon at rest: threads that still start open some, and the kernel tells of
 * closed files a moment later.
 */
async function settledOpenFiles(pid: number): Promise<number> {
  const deadline = performance.now() + 30_000;
  let count = await openFiles(pid);
  let since = performance.now();
  while (performance.now() < since + 500) {
    if (performance.now() > deadline) throw new Error(`the open files of ${pid} do not settle`);
    await new Promise((resolve) => setTimeout(resolve, 20));
    const now = await openFiles(pid);
    if (now !== count) since = performance.now();
    count = now;
  }
  return count;
}

/** Makes the only L1 entry of a qcow2 image point into the middle of a cluster, which QEMU calls corrupt. */
async function breakL1Entry(image: string): Promise<void> {
  const file = await open(image, "r+");
  try {
    const header = Buffer.alloc(48);
    await file.read(header, 0, 48, 0);
    const entry = Buffer.from("8000000000040200", "hex");
    await file.write(entry, 0, 8, Number(header.readBigUInt64BE(40)));
  } finally {
    await file.close();
  }
}

describe("the daemon of a mount", () => {
  let directory = "";
  let sample: SampleImage;
  let broken = "";

  beforeAll(async () => {
    directory = await makeScratch("daemon");
    sample = await makeSample(directory, "vm.qcow2");
    broken = join(directory, "broken.qcow2");
    await createImage(broken, "qcow2", { size: MIB });
    await qemuIo(broken, "qcow2", ["write -q -P 5 0 64k"]);
    await breakL1Entry(broken);
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  it("is detached: its own session, no directory and no terminal kept", async () => {
    await mounted([sample.path], { log: "none" }, async (mount) => {
      const pid = mount.daemonPid();
      const stat = await readFile(`/proc/${pid}/stat`, "latin1");
      const [, parent, , session] = stat
        .slice(stat.lastIndexOf(")") + 2)
        .split(" ")
        .map(Number);
      expect(parent).not.toBe(process.pid);
      expect(session).toBe(pid);
      expect(await readlink(`/proc/${pid}/cwd`)).toBe("/");
      for (const descriptor of [0, 1, 2]) {
        expect(await readlink(`/proc/${pid}/fd/${descriptor}`)).not.toMatch(
          /^(pipe|socket):|pts|tty/,
        );
      }
    });
  });

  it("stays below 150 MiB and gives back what it opened", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const pid = mount.daemonPid();
      const device = mount.device(sample.path);
      await run("cmp", [device, sample.expected]);
      const before = await settledOpenFiles(pid);
      const loop = `for i in $(seq ${roundsOfTransport(200, 40)}); do head -c 1000 "$0" >&2; cat "$1" >&2; ls -lR "$2" >&2; done`;
      await run("sh", [
        "-c",
        `${loop} 2>/dev/null`,
        device,
        mount.stats(sample.path),
        mount.mountPoint,
      ]);
      expect(await settledOpenFiles(pid)).toBe(before);
      expect(residentBytes(pid)).toBeLessThan(150 * MIB);
    });
  });

  it("uses no processor time while nobody reads", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const pid = mount.daemonPid();
      await run("cmp", [mount.device(sample.path), sample.expected]);
      await new Promise((resolve) => setTimeout(resolve, 500));
      const ticks = async (): Promise<number> => {
        const stat = await readFile(`/proc/${pid}/stat`, "latin1");
        const fields = stat
          .slice(stat.lastIndexOf(")") + 2)
          .split(" ")
          .map(Number);
        return (fields[11] ?? 0) + (fields[12] ?? 0);
      };
      const before = await ticks();
      await new Promise((resolve) => setTimeout(resolve, 2000));
      expect((await ticks()) - before).toBeLessThan(20); // of the 200 ticks of one processor
    });
  });

  it("answers reads of a broken place with EIO, logs why, and goes on", async () => {
    const log = join(directory, "daemon.log");
    await mounted([broken, sample.path], { args: ["-r", "--log-file", log] }, async (mount) => {
      const { status, stderr } = await attempt("cat", [mount.device(broken)]);
      expect(status).toBe(1);
      expect(stderr).toMatch(/Input\/output error/);
      await expectSameBytes(mount.device(sample.path), sample.expected, "after an error");
      await run("cat", [mount.stats(broken)]);
      const text = await readFile(log, "utf8");
      expect(text).toContain("broken.qcow2");
      expect(text).toMatch(/0x40200/);
    });
  });

  it("writes no file unless asked to log", async () => {
    const before = await readdir(directory);
    await mounted([sample.path], { log: "none" }, async (mount) => {
      await run("cmp", [mount.device(sample.path), sample.expected]);
    });
    expect(await readdir(directory)).toEqual(before);
  });

  it("is not disturbed by readers that are killed in the middle", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const device = mount.device(sample.path);
      const endless = 'while :; do dd if="$0" of=/dev/null bs=1M iflag=direct status=none; done';
      for (let round = 0; round < 15; round++) {
        await withProgram("sh", ["-c", endless, device], async (reader) => {
          await new Promise((resolve) => setTimeout(resolve, 30 + round));
          reader.kill(round % 2 === 0 ? "SIGKILL" : "SIGTERM");
          await reader.end();
        });
      }
      await expectSameBytes(device, sample.expected, "after killed readers");
      expect(mount.daemonPids()).toHaveLength(1);
    });
  });
});
