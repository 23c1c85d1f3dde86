// mount-scripts/quickstart.sh in a clone that is built: what it mounts, and what Ctrl-C leaves of it at any moment.

import { spawn } from "node:child_process";
import { mkdirSync, readdirSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MARK, markedProcesses, newMark } from "../support/daemon-processes.ts";
import { mountAt } from "../support/mount-table.ts";
import { createImage } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { REPOSITORY } from "../support/repository.ts";
import { run, until } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { tsimgfs } from "../support/tsimgfs.ts";

/** From the start of the shell until after all that the script does. */
const LATEST_MS = 2500;
const random = new Random("quickstart");

let directory = "";
let script = "";
let image = "";

/** A clone whose packages are installed, and which is built: nothing of either is to be done. */
function makeClone(clone: string): void {
  for (const folder of ["src", "node_modules", "dist"])
    mkdirSync(join(clone, folder), { recursive: true });
  symlinkSync(join(REPOSITORY, "mount-scripts"), join(clone, "mount-scripts"));
  for (const name of readdirSync(join(REPOSITORY, "dist"))) {
    if (name !== ".built") symlinkSync(join(REPOSITORY, "dist", name), join(clone, "dist", name));
  }
  for (const name of ["package.json", "package-lock.json", "tsconfig.json"]) {
    writeFileSync(join(clone, name), "{}");
  }
  const later = Date.now() / 1000 + 3600;
  for (const name of ["node_modules/.package-lock.json", "dist/.built"]) {
    writeFileSync(join(clone, name), "");
    utimesSync(join(clone, name), later, later);
  }
}

beforeAll(async () => {
  directory = await makeScratch("quickstart");
  makeClone(join(directory, "clone"));
  script = join(directory, "clone", "mount-scripts", "quickstart.sh");
  image = join(directory, "vm.qcow2");
  await createImage(image, "qcow2", { size: 2 ** 20 });
});
afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
});

/** The places for temporary files of one run. */
async function newTemporary(): Promise<string> {
  const path = join(directory, `tmp-${random.u32()}`);
  await mkdir(path);
  return path;
}

const mountsBelow = (temporary: string, names: readonly string[]): string | undefined =>
  names
    .flatMap((name) => [join(temporary, name), join(temporary, name, "mnt")])
    .find((path) => mountAt(path) !== undefined);

it("mounts an image, and says how to end that", async () => {
  const temporary = await newTemporary();
  const { stdout } = await run("sh", [script, image], { env: { TMPDIR: temporary } });
  const [name = ""] = await readdir(temporary);
  const mountPoint = join(temporary, name);
  expect(stdout).toContain(`is mounted at ${mountPoint}`);
  expect(await readdir(mountPoint)).toContain("vm.raw");
  const { stdout: again } = await run("sh", [script, image, mountPoint], {
    env: { TMPDIR: temporary },
  });
  expect(again).toContain("already");
  await tsimgfs(["umount", mountPoint]);
});

describe("when it is stopped", () => {
  describe.each([
    ["an image", () => [image]],
    ["the demonstration", () => []],
  ])("Ctrl-C leaves nothing of %s", (_, args) => {
    /** Ctrl-C goes to all processes in the foreground of a terminal. */
    async function interrupted(moment: (temporary: string) => Promise<void>): Promise<void> {
      const temporary = await newTemporary();
      const mark = newMark();
      const child = spawn("sh", [script, ...args()], {
        stdio: "ignore",
        detached: true,
        env: { ...process.env, TMPDIR: temporary, [MARK]: mark },
      });
      const { pid } = child;
      if (pid === undefined) throw new Error("sh did not start");
      const ended = new Promise<number | string | null>((resolve) =>
        child.once("exit", (status, signal) => resolve(status ?? signal)),
      );
      await Promise.race([moment(temporary), ended]);
      if (child.exitCode === null && child.signalCode === null) process.kill(-pid, "SIGINT");
      const status = await ended;
      if (status === 0) {
        // It was done before.
        const mountPoint = mountsBelow(temporary, await readdir(temporary));
        await tsimgfs(["umount", mountPoint ?? "nothing is mounted"]);
      } else {
        // The shell may have had no time to say what is to be done.
        expect([130, "SIGINT"]).toContain(status);
        expect(await readdir(temporary)).toEqual([]);
      }
      await until("no process is left", () => markedProcesses(mark).length === 0);
      await rm(temporary, { recursive: true });
    }

    it("as soon as it is mounted", async () => {
      await interrupted(async (temporary) => {
        await until("it is mounted", async () => {
          return mountsBelow(temporary, await readdir(temporary)) !== undefined;
        });
      });
    });

    it("at any moment", async () => {
      for (let run = 0; run < byScale(2, 25); run++) {
        await interrupted(async () => {
          await sleep(random.below(LATEST_MS));
        });
      }
    });
  });
});
