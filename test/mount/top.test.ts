// `tsimgfs top` beside mounts that are used: its rates against what was done, and the terminal it leaves.

import { spawn } from "node:child_process";
import { rmSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { asArray, asRecord, numberIn } from "../support/json.ts";
import { mounted } from "../support/mounted.ts";
import { createImage } from "../support/qemu.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { itOnce, transportHas } from "../support/transport.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

const MiB = 1024 * 1024;

let directory: string;

beforeAll(async () => {
  directory = await makeScratch("top");
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Runs a shell command on a terminal of its own, typing `keys` after a while. Returns what the terminal got. */
async function onTerminal(command: string, keys: string, env: string): Promise<string> {
  const typed = `(sleep 2; printf '${keys}'; sleep 1)`;
  const script = `${typed} | ${env} script -qefc '${command}' /dev/null`;
  return (await run("sh", ["-c", script], { timeoutMs: 60_000 })).stdout;
}

describe("tsimgfs top", () => {
  it("tells what devices do, of mounts on directories and on files", async () => {
    const paths = ["one.qcow2", "two.raw"].map((name) => join(directory, name));
    const [one = "", two = ""] = paths;
    await createImage(one, "qcow2", { size: 64 * MiB });
    await createImage(two, "raw", { size: 8 * MiB });
    const kind = transportHas("file-mountpoint") ? "file" : "directory";
    await mounted([one], {}, async (mount) => {
      await mounted([two], { mountPointKind: kind }, async (other) => {
        const loop = `while :; do dd if=/dev/urandom of="$0" bs=64k count=16 conv=notrunc oflag=direct; done`;
        const busy = spawn("sh", ["-c", loop, mount.device(one)], { stdio: "ignore" });
        try {
          const { stdout } = await tsimgfs(["top", "--once", "--output", "json", "-d", "1"]);
          const mounts = asArray(asRecord(JSON.parse(stdout))["mounts"]).map(asRecord);
          const devicesOf = (mountpoint: string): readonly Readonly<Record<string, unknown>>[] => {
            const found = mounts.find((candidate) => candidate["mountpoint"] === mountpoint);
            return asArray(found?.["devices"]).map(asRecord);
          };
          const [busyDevice = {}] = devicesOf(mount.mountPoint);
          expect(busyDevice).toMatchObject({
            device: mount.device(one),
            image: one,
            format: "qcow2",
          });
          const rates = asRecord(busyDevice["rates"]);
          const { write, read } = asRecord(rates["operations"]);
          const requests = numberIn(asRecord(write), "requests-per-second");
          expect(requests).toBeGreaterThan(0);
          expect(numberIn(asRecord(write), "bytes-per-second")).toBeCloseTo(requests * 65536, 0);
          expect(asRecord(read)).toMatchObject({ "requests-per-second": 0, errors: 0 });
          const [idle = {}] = devicesOf(other.mountPoint);
          const device = kind === "file" ? other.mountPoint : other.device(two);
          expect(idle).toMatchObject({ device, image: two, format: "raw" });
          expect(asRecord(idle["rates"])).toMatchObject({ "table-cache-hit-ratio": 1 });
          const frame = (await tsimgfs(["top", "--once"])).stdout;
          expect(frame).toContain(`${mount.mountPoint}\n  one.raw`);
          expect(frame).not.toContain("\u001b");
        } finally {
          busy.kill("SIGKILL");
        }
      });
    });
  });

  itOnce.each([
    { how: "q", keys: "q" },
    { how: "Ctrl-C", keys: "\\003" },
  ])("ends with $how, and leaves the terminal as it was", async ({ keys }) => {
    const [before, after] = [join(directory, "before"), join(directory, "after")];
    const live = `stty -a > ${before}; ${process.execPath} ${MAIN} top -d 0.3; stty -a > ${after}`;
    const shown = await onTerminal(live, keys, "NO_COLOR= TERM=xterm");
    expect(await readFile(after, "utf8")).toBe(await readFile(before, "utf8"));
    const [enter, leave] = [shown.indexOf("\u001b[?1049h"), shown.indexOf("\u001b[?1049l")];
    expect(enter).toBeGreaterThanOrEqual(0);
    expect(leave).toBeGreaterThan(enter);
    expect(shown.indexOf("\u001b[?25h")).toBeGreaterThan(enter);
    expect(shown).toContain("\u001b[1mDEVICE");
  });

  itOnce(
    "leaves the terminal as it was when it is killed, and has no colours with NO_COLOR",
    async () => {
      const [before, after] = [join(directory, "before"), join(directory, "after")];
      const node = `${process.execPath} ${MAIN} top -d 0.3`;
      const killed = `stty -a > ${before}; timeout --foreground --preserve-status -s TERM 2 ${node}; echo status $?; stty -a > ${after}`;
      const shown = await onTerminal(killed, "", "NO_COLOR=1 TERM=xterm");
      expect(await readFile(after, "utf8")).toBe(await readFile(before, "utf8"));
      expect(shown).toContain("\u001b[?1049l");
      expect(shown).toContain("DEVICE");
      expect(shown).not.toContain("\u001b[1m");
      // That is how it ends.
      expect(shown).toContain("status 0");
    },
  );

  itOnce("refuses what it does not understand", async () => {
    await expectRefusal(["top", "-d", "0"], [/--delay: 0 is not a number of seconds/]);
    await expectRefusal(["top", "--output", "xml"], [/--output/]);
    const { status } = await attempt("sh", [
      "-c",
      `${process.execPath} ${MAIN} top -d 0.1 | head -n 1`,
    ]);
    expect(status).toBe(0);
  });
});
