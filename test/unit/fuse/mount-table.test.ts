/** The kernel's table of mounts: lines as proc(5) describes them. */

import fs from "node:fs";
import { afterEach, describe, expect, it, vi } from "vitest";
import { findMount, readMountTable } from "../../../src/fuse/mount-table.ts";

afterEach(() => {
  vi.restoreAllMocks();
});

function withTable(...lines: string[]): void {
  vi.spyOn(fs, "readFileSync").mockReturnValue(lines.map((line) => `${line}\n`).join(""));
}

const OURS = "fuse.tsimgfs";

describe("readMountTable", () => {
  it("finds our mounts among others", () => {
    withTable(
      "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw",
      `36 22 0:31 / /mnt/images ro,nosuid,nodev shared:9 - ${OURS} /vm.qcow2 ro,user_id=1000,group_id=0`,
      "37 22 0:32 / /mnt/other rw - fuse.sshfs host: rw",
      "38 22 0:33 / /mnt/tsimgfs rw - fuse fuse.tsimgfs rw",
    );
    expect(readMountTable()).toEqual([
      {
        type: "fuse.tsimgfs",
        mountpoint: "/mnt/images",
        device: "0:31",
        source: "/vm.qcow2",
        userId: 1000,
      },
    ]);
  });

  it("reads lines with no optional field and with several", () => {
    withTable(
      `36 22 0:31 / /a ro - ${OURS} a ro`,
      `37 22 0:32 / /b ro shared:1 master:2 propagate_from:3 - ${OURS} b ro`,
    );
    expect(readMountTable().map(({ mountpoint }) => mountpoint)).toEqual(["/a", "/b"]);
    expect(readMountTable().map(({ userId }) => userId)).toEqual([0, 0]);
  });

  it("undoes the kernel's escapes", () => {
    withTable(`36 22 0:31 / /mnt/a\\040b\\011c\\012d\\134e\\043 ro - ${OURS} x\\040y ro`);
    expect(readMountTable()[0]).toMatchObject({ mountpoint: "/mnt/a b\tc\nd\\e#", source: "x y" });
  });

  it("is not misled by a mount point that looks like the end of the fields", () => {
    withTable(`36 22 0:31 / /mnt/-\\040${OURS} ro shared:1 - ext4 /dev/sda rw`);
    expect(readMountTable()).toEqual([]);
  });

  it("reads the real table", () => {
    expect(Array.isArray(readMountTable())).toBe(true);
  });
});

describe("findMount", () => {
  it("finds nothing where another file system lies on top", () => {
    withTable(
      `36 22 0:31 / /mnt ro - ${OURS} /vm.qcow2 ro`,
      "37 36 0:32 / /mnt rw - tmpfs none rw",
    );
    expect(findMount("/mnt")).toBeUndefined();
  });

  it("gives the newest mount at a place", () => {
    withTable(
      `36 22 0:31 / /a ro - ${OURS} old ro`,
      `37 36 0:32 / /a ro - ${OURS} new ro`,
      `38 22 0:33 / /a/b ro - ${OURS} below ro`,
    );
    expect(findMount("/a")?.source).toBe("new");
    expect(findMount("/")).toBeUndefined();
    expect(findMount("/a/")).toBeUndefined();
  });
});
