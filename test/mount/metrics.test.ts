// `metrics` at the root of a mount: the OpenMetrics text format, by a strict reader, and what was done to the devices.

import { rmSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { asRecord } from "../support/json.ts";
import { type Mount, mounted } from "../support/mounted.ts";
import { type Family, parseOpenMetrics } from "../support/openmetrics.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { run, runJson } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { itNeeds, transportHas } from "../support/transport.ts";
import { readXattrs } from "../support/xattr.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

let directory: string;

beforeAll(async () => {
  directory = await makeScratch("metrics");
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function metricsOf(mount: Mount): Promise<Family[]> {
  return parseOpenMetrics((await run("cat", [join(mount.mountPoint, "metrics")])).stdout);
}

function sampleValue(
  families: readonly Family[],
  name: string,
  wanted: Readonly<Record<string, string>>,
): number {
  const found = families
    .flatMap(({ samples }) => samples)
    .filter(
      (sample) =>
        sample.name === name &&
        Object.entries(wanted).every(([label, value]) => sample.labels[label] === value),
    );
  expect(found, `${name} ${JSON.stringify(wanted)}`).toHaveLength(1);
  return found[0]?.value ?? Number.NaN;
}

describe("metrics", () => {
  it("is OpenMetrics, labelled by device, whatever images are called", async () => {
    const names = ['quote " and \\ slash.qcow2', "plain.raw", 'grüße {a="b"}, c.qed'];
    const paths = names.map((name) => join(directory, name));
    const formats = ["qcow2", "raw", "qed"] as const;
    for (const [index, path] of paths.entries()) {
      await createImage(path, formats[index] ?? "raw", { size: 4 * MiB });
    }
    await mounted(paths, {}, async (mount) => {
      const families = await metricsOf(mount);
      const devices = names.map((name) => name.replace(/\.[^.]*$/, ""));
      for (const { name, samples } of families) {
        const labels = [...new Set(samples.map(({ labels: { device } }) => device))];
        // None of them has a backing file.
        expect(labels, name).toEqual(name.startsWith("tsimgfs_stream") ? [] : devices);
      }
      const info = families.find(({ name }) => name === "tsimgfs_device");
      expect(info?.samples.map(({ labels }) => labels)).toEqual(
        paths.map((image, index) => ({
          ...{ device: devices[index], image, format: formats[index], access: "read-write" },
        })),
      );
    });
  });

  it("counts what was done", async () => {
    const [base, path] = [join(directory, "base.qcow2"), join(directory, "vm.qcow2")];
    await createImage(base, "qcow2", { size: 8 * MiB });
    await qemuIo(base, "qcow2", ["write -P 1 0 1M"]);
    await createImage(path, "qcow2", { size: 8 * MiB, backing: { file: base, format: "qcow2" } });
    await mounted([path], {}, async (mount) => {
      const device = mount.device(path);
      const dd = (...args: string[]): Promise<unknown> => run("dd", ["status=none", ...args]);
      await dd(`if=${device}`, "of=/dev/null", "bs=64k", "count=4", "iflag=direct");
      const to = [`of=${device}`, "conv=notrunc", "oflag=direct"];
      await dd("if=/dev/urandom", ...to, "bs=128k", "count=3", "seek=20", "iflag=fullblock");
      await dd("if=/dev/zero", ...to, "bs=128k", "count=4", "seek=32");
      const hasDiscards = transportHas("fallocate");
      if (hasDiscards) {
        await run("fallocate", ["-p", "-o", "0", "-l", "512KiB", device]);
        await run("fallocate", ["-z", "-n", "-o", "5MiB", "-l", "64KiB", device]);
      }
      await run("sync", [device]);
      const families = await metricsOf(mount);
      const value = (name: string, labels: Readonly<Record<string, string>> = {}): number =>
        sampleValue(families, `tsimgfs_${name}`, { device: "vm", ...labels });
      expect(value("virtual_size_bytes")).toBe(8 * MiB);
      expect(value("request_bytes_total", { operation: "read" })).toBe(256 * KiB);
      expect(value("request_bytes_total", { operation: "write" })).toBe(896 * KiB);
      expect(value("request_bytes_total", { operation: "discard" })).toBe(
        hasDiscards ? 512 * KiB : 0,
      );
      expect(value("request_bytes_total", { operation: "zero" })).toBe(hasDiscards ? 64 * KiB : 0);
      expect(value("request_errors_total", { operation: "write" })).toBe(0);
      const discards = hasDiscards ? 1 : 0;
      const requests = { read: 4, write: 7, discard: discards, zero: discards };
      for (const [operation, count] of Object.entries(requests)) {
        expect(value("request_duration_seconds_count", { operation }), operation).toBe(count);
      }
      expect(
        value("request_duration_seconds_count", { operation: "flush" }),
      ).toBeGreaterThanOrEqual(1);
      expect(value("copy_on_read_clusters_total", { result: "stored" })).toBe(4);
      expect(value("zero_detected_bytes_total")).toBe(512 * KiB);
      expect(value("zero_detected_clusters_total")).toBe(8);
      expect(value("table_cache_lookups_total", { result: "hit" })).toBeGreaterThan(0);
      expect(value("stream_state", { tsimgfs_stream_state: "idle" })).toBe(1);
      // The same as in the statistics, and in the attribute that `tsimgfs top` reads.
      const stats = asRecord(await runJson("cat", [mount.stats(path)]));
      const io = asRecord(stats["io"]);
      expect(asRecord(io["operations"])["write"]).toMatchObject({ requests: 7, bytes: 896 * KiB });
      expect(io).toMatchObject({ "copy-on-read-stored": 4, "zero-clusters-detected": 8 });
      const attributes = await readXattrs(device);
      const sample = asRecord(JSON.parse(attributes.get("user.tsimgfs.counters") ?? ""));
      expect(asRecord(sample["operations"])["write"]).toMatchObject({ requests: 7 });
      expect(asRecord(sample["events"])).toMatchObject({ "copy-on-read-stored": 4 });
    });
  });

  it("counts requests that fail", async () => {
    const path = join(directory, "short.qcow2");
    await createImage(path, "qcow2", { size: MiB });
    await mounted([path], {}, async (mount) => {
      const device = mount.device(path);
      const past = ["if=/dev/zero", `of=${device}`, "bs=64k", "seek=16", "count=1", "conv=notrunc"];
      await expect(run("dd", past)).rejects.toThrow(/No space left/);
      const labels = { device: "short", operation: "write" };
      const families = await metricsOf(mount);
      expect(sampleValue(families, "tsimgfs_request_errors_total", labels)).toBe(1);
    });
  });

  itNeeds("file-mountpoint")("is not there where the mount is a file", async () => {
    const path = join(directory, "file.qcow2");
    await createImage(path, "qcow2", { size: MiB });
    await mounted([path], { mountPointKind: "file" }, async (mount) => {
      expect((await readXattrs(mount.mountPoint)).has("user.tsimgfs.counters")).toBe(true);
      await expect(readdir(mount.mountPoint)).rejects.toThrow(/ENOTDIR/);
    });
  });
});
