// detach of an image whose daemon was told to end by somebody else: it returns when the image is closed, all the same.

import { describe, expect, it } from "vitest";
import { MARK, markedProcesses, newMark, runsNode } from "../support/daemon-processes.ts";
import { withProgram } from "../support/foreground.ts";
import { asArray, asRecord } from "../support/json.ts";
import { mountTable } from "../support/mount-table.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run, until } from "../support/run.ts";
import { IMAGE, WRITTEN, withSlowImage, writerArgs } from "../support/slow-mount.ts";
import { attemptTsimgfs, tsimgfs } from "../support/tsimgfs.ts";

/** What it says then. */
const WAITS = /: waiting until process \d+ has closed the images/;

describe.skipIf(!IS_ROOT)("detach, while the image is being closed (needs root)", () => {
  it.each(["loop device", "closing daemon"])("waits for the %s that is left", async (left) => {
    await withSlowImage("image", "clean", async (slow) => {
      const image = slow.file(IMAGE);
      const mark = newMark();
      const { stdout } = await tsimgfs(["attach", "--output", "json", image], {
        env: { [MARK]: mark },
      });
      const [disk] = asArray(asRecord(JSON.parse(stdout))["devices"]).map(asRecord);
      const device = String(disk?.["device"]);
      const daemons = (): number[] => markedProcesses(mark).filter(runsNode);
      const isClosing = async (): Promise<boolean> => (await slow.report()).held > 0;
      try {
        await run("dd", [...writerArgs(device, WRITTEN, "nocreat"), "oflag=direct"]);
        slow.tell({ kind: "freeze", calls: "changes" });
        for (const pid of daemons()) process.kill(pid, "SIGTERM");
        await until("the mount is out of sight", () =>
          mountTable().every(({ source }) => source !== image),
        );
        if (left === "closing daemon") {
          await run("losetup", ["--detach", device]);
          await until("the image is being closed", isClosing);
        }
        const args = [MAIN, "-v", "detach", image];
        await withProgram(process.execPath, args, async (detach) => {
          await until("it waits", () => WAITS.test(detach.output) || !detach.isRunning);
          await until("the image is being closed", isClosing);
          slow.tell({ kind: "release" });
          const status = await detach.end();
          const { output } = detach;
          expect({ status, output, daemons: daemons() }).toMatchObject({ status: 0, daemons: [] });
        });
        expect((await attempt("losetup", [device])).status).not.toBe(0);
      } finally {
        slow.tell({ kind: "release" });
        await until("it is detached", async () => {
          return (await attemptTsimgfs(["detach", image])).status === 0;
        });
      }
    });
  });
});
