/** SETXATTR on hand-laid bytes: which attribute can be set, where, and to what. */

import { constants } from "node:os";
import { describe, expect, it } from "vitest";
import { qcow2Bytes } from "../../support/qcow2-builder.ts";
import { withTree } from "../tree/sample-tree.ts";
import { Caller, nameArguments, xattrArguments } from "./call.ts";
import { DEVICE, POLICY, ROOT, STATS, withDevice, withReadOnlyDevice } from "./writable-device.ts";

const { ENODATA, EOPNOTSUPP, ESTALE } = constants.errno;
const [SETXATTR, GETXATTR] = [21, 22];
const STREAM = "user.tsimgfs.stream";
const OWNERSHIP = { uid: 0, gid: 0, umask: undefined } as const;

/** `fuse_setxattr_in` without FUSE_SETXATTR_EXT (8 bytes), the name, the value. */
function setxattrArguments(name: string, value: string, size = value.length): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt32LE(size, 0);
  return Buffer.concat([bytes, nameArguments(name), Buffer.from(value)]);
}

/** The errno of a call, that is returned or thrown. */
function errnoOf(caller: Caller, nodeid: number, args: Uint8Array): number | string {
  try {
    return 0 - caller.call(SETXATTR, nodeid, args).result;
  } catch (error) {
    return error instanceof Error && "code" in error ? String(error.code) : String(error);
  }
}

/** A device with a backing file: any file that there is will do. */
async function withOverlay(body: (caller: Caller) => void): Promise<void> {
  const backing = { backingFile: import.meta.filename, backingFormat: "raw" };
  const image = qcow2Bytes({ clusterBits: 12, virtualSize: 65536, ...backing });
  await withTree(
    [["overlay.qcow2", image]],
    ({ tree, endWriting }) => {
      body(new Caller({ tree, ownership: OWNERSHIP }));
      endWriting(0);
    },
    { policy: POLICY },
  );
}

describe("SETXATTR", () => {
  it("lets a device be streamed, as GETXATTR then says", async () => {
    await withOverlay((caller) => {
      const tell = (value: string): number | string =>
        errnoOf(caller, DEVICE, setxattrArguments(STREAM, value));
      const state = (): string =>
        caller.call(GETXATTR, DEVICE, xattrArguments(100, STREAM)).payload.toString();
      expect(state()).toBe("idle");
      expect([tell("start=2M"), state()]).toEqual([0, "running 0/0"]);
      expect([tell("pause"), state()]).toEqual([0, "paused 0/0"]);
      expect([tell("start"), state()]).toEqual([0, "running 0/0"]);
      expect([tell("cancel"), state()]).toEqual([0, "idle"]);
      expect([tell("pause"), tell("stop"), tell(""), state()]).toEqual([
        ...["EINVAL", "EINVAL", "EINVAL"],
        "idle",
      ]);
    });
  });

  it("takes as much of the value as the request says and has", async () => {
    await withOverlay((caller) => {
      const result = (args: Uint8Array): number | string => errnoOf(caller, DEVICE, args);
      expect(result(setxattrArguments(STREAM, "start and more", 5))).toBe(0);
      expect(result(setxattrArguments(STREAM, "cancel", 0xffff_ffff))).toBe(0);
      expect(result(setxattrArguments(STREAM, "cancel", 0))).toBe("EINVAL");
      // A name without an end, and no name at all.
      expect(result(Buffer.concat([Buffer.alloc(8), Buffer.from(STREAM)]))).toBe("EINVAL");
      expect(result(Buffer.alloc(8))).toBe(EOPNOTSUPP);
    });
  });

  it("refuses all else", async () => {
    const start = setxattrArguments(STREAM, "start");
    await withDevice(({ caller }) => {
      expect(errnoOf(caller, DEVICE, start)).toBe("ENODATA");
      for (const name of ["user.tsimgfs.format", "user.tsimgfs.strea", "security.x", ""]) {
        expect(errnoOf(caller, DEVICE, setxattrArguments(name, "start"))).toBe(EOPNOTSUPP);
      }
      expect(errnoOf(caller, ROOT, start)).toBe(EOPNOTSUPP);
      expect(errnoOf(caller, STATS, start)).toBe(EOPNOTSUPP);
      expect(errnoOf(caller, 999, start)).toBe(ESTALE);
      expect(caller.call(GETXATTR, DEVICE, xattrArguments(100, STREAM)).result).toBe(-ENODATA);
    });
    await withReadOnlyDevice((caller) => {
      expect(errnoOf(caller, DEVICE, start)).toBe("EPERM");
    });
  });
});
