// detach while the medium of the image does not answer: it says so in bounded time, and does the rest when it is asked again.
// These wait for its patience, half a minute, and so all at once.

import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { MARK, markedProcesses, newMark } from "../support/daemon-processes.ts";
import { withProgram } from "../support/foreground.ts";
import { asArray, asRecord } from "../support/json.ts";
import { mountAt } from "../support/mount-table.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { attempt, run, until } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import type { SlowDirectory } from "../support/slow-files.ts";
import {
  holdStuck,
  IMAGE,
  stuckReaderArgs,
  WRITTEN,
  withSlowImage,
  writerArgs,
} from "../support/slow-mount.ts";
import { attemptTsimgfs, refusalOf, tsimgfs } from "../support/tsimgfs.ts";

/** Calls `body` with the loop device of an attached image; it is detached at the end, and all of it is gone. */
async function attached(
  slow: SlowDirectory,
  body: (device: string) => Promise<void>,
): Promise<void> {
  const image = slow.file(IMAGE);
  const mark = newMark();
  const env = { [MARK]: mark };
  const { stdout } = await tsimgfs(["attach", "--output", "json", image], { env });
  const [disk] = asArray(asRecord(JSON.parse(stdout))["devices"]).map(asRecord);
  const device = String(disk?.["device"]);
  try {
    await body(device);
  } finally {
    slow.tell({ kind: "release" });
    await until("it is detached", async () => {
      return (await attemptTsimgfs(["detach", image])).status === 0;
    });
    await until("the daemon is gone", () => markedProcesses(mark).length === 0);
  }
  expect((await attempt("losetup", [device])).status).not.toBe(0);
}

describe.skipIf(!IS_ROOT)("detach, where the medium does not answer (needs root)", () => {
  it.concurrent.each([
    ["reads", (device: string) => stuckReaderArgs(device)],
    // What it has written goes to the medium before close(2) returns.
    ["writes", (device: string) => writerArgs(device, WRITTEN, "nocreat")],
  ] as const)("tells of who waits for what it %s", async (what, argsFor) => {
    await withSlowImage("image", "leaks", async (slow) => {
      await attached(slow, async (device) => {
        if (what === "reads") await holdStuck(slow, "image");
        else slow.tell({ kind: "freeze", calls: "changes" });
        await withProgram("dd", argsFor(device), async (program) => {
          await until("calls have no answer", async () => (await slow.report()).held > 0);
          for (const subject of [device, slow.file(IMAGE)]) {
            const line = refusalOf(await attemptTsimgfs(["detach", subject]));
            expect(line).toMatch(/^tsimgfs: \/dev\/loop\d+: is in use;/);
          }
          slow.tell({ kind: "release" });
          expect(await program.end()).toBe(0);
        });
      });
    });
  });

  it.concurrent("tells of a file system that cannot be written out, and does the rest later", async () => {
    await withSlowImage("image", "leaks", async (slow) => {
      await attached(slow, async (device) => {
        await run("mkfs.ext4", ["-q", "-F", device]);
        const target = await makeScratch("detach-stuck");
        try {
          await run("mount", [device, target]);
          await writeFile(join(target, "file"), Buffer.alloc(2 ** 20, 7));
          slow.tell({ kind: "freeze", calls: "changes" });
          const waiting = refusalOf(await attemptTsimgfs(["detach", device]));
          expect(waiting).toMatch(/: umount waits, perhaps for a medium that does not answer;/);
          // Out of sight, and not yet gone.
          const again = refusalOf(await attemptTsimgfs(["detach", device]));
          expect(again).toMatch(/\/dev\/loop\d+: (is in use|losetup waits)/);
          slow.tell({ kind: "release" });
          await until("it is unmounted", () => mountAt(target) === undefined);
        } finally {
          await rm(target, { recursive: true, force: true });
        }
      });
    });
  });
});
