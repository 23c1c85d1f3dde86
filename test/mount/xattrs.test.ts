// The extended attributes of a device: what qemu-img info says, readable without opening the device.

import { rm } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { asRecord } from "../support/json.ts";
import { mounted } from "../support/mounted.ts";
import { imageInfo } from "../support/qemu.ts";
import { attempt } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { readXattrs } from "../support/xattr.ts";

describe("extended attributes", () => {
  let directory = "";
  let base: SampleImage;

  beforeAll(async () => {
    directory = await makeScratch("xattrs");
    base = await makeSample(directory, "base.raw", { format: "raw" });
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  it.each([
    ["qcow2", "small.qcow2", 4096],
    ["qed", "small.qed", 8192],
  ] as const)("of a %s overlay say what qemu-img info says", async (format, name, clusterSize) => {
    const sample = await makeSample(directory, name, {
      format,
      options: { cluster_size: clusterSize },
      backing: { file: "base.raw", format: "raw" },
    });
    await mounted([sample.path], { args: ["-r"] }, async (mount) => {
      const info = asRecord(await imageInfo([sample.path]));
      const xattrs = await readXattrs(mount.device(sample.path));
      expect(xattrs.get("user.tsimgfs.format")).toBe(info["format"]);
      expect(xattrs.get("user.tsimgfs.backing-file")).toBe("base.raw");
      expect(xattrs.get("user.tsimgfs.virtual-size")).toBe(String(info["virtual-size"]));
      expect(xattrs.get("user.tsimgfs.cluster-size")).toBe(String(info["cluster-size"]));
    });
  });

  it("of an image without a backing file name none", async () => {
    await mounted([base.path], {}, async (mount) => {
      const xattrs = await readXattrs(mount.device(base.path));
      expect(xattrs.get("user.tsimgfs.format")).toBe("raw");
      expect([...xattrs.keys()]).not.toContain("user.tsimgfs.backing-file");
    });
  });

  it("do not disturb ls -l and cp -a", async () => {
    await mounted([base.path], {}, async (mount) => {
      const { status, stderr } = await attempt("ls", ["-lR", mount.mountPoint]);
      expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
      const copy = await attempt("cp", ["-a", mount.device(base.path), `${directory}/copy`]);
      expect(copy.stderr).toBe("");
    });
  });
});
