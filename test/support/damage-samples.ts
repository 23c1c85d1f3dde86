/** Small intact images of all kinds, made by QEMU, for tests that damage them. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { CheckedFormat } from "./check-oracle.ts";
import { createEncryptedImage, encryptedArguments } from "./encrypted-image.ts";
import { createImage, qemuIo } from "./qemu.ts";
import { run } from "./run.ts";

export interface DamageSample {
  readonly name: string;
  readonly bytes: Buffer;
  /** How QEMU opens it. */
  readonly format: CheckedFormat;
}

interface SamplePlan {
  readonly name: string;
  readonly options: Readonly<Record<string, string | number>>;
  readonly snapshots?: boolean;
  readonly bitmaps?: boolean;
  readonly compressed?: boolean;
  /** Something of a virtual machine is behind the disk. */
  readonly vmState?: boolean;
  readonly encryption?: "luks" | "aes";
}

const PLANS: readonly SamplePlan[] = [
  { name: "plain", options: {} },
  { name: "v2", options: { compat: "0.10", cluster_size: 4096 }, snapshots: true },
  ...[1, 2, 4, 8, 16, 32, 64].map((bits) => ({
    name: `${bits}-bit`,
    options: { refcount_bits: bits, cluster_size: bits < 8 ? 512 : 1024 },
    snapshots: bits > 1,
    compressed: bits > 4,
  })),
  { name: "compressed", options: { cluster_size: 8192 }, compressed: true, snapshots: true },
  { name: "zstd", options: { cluster_size: 65536, compression_type: "zstd" }, compressed: true },
  { name: "extended", options: { cluster_size: 16384, extended_l2: "on" }, compressed: true },
  {
    name: "extended-snapshots",
    options: { cluster_size: 32768, extended_l2: "on" },
    snapshots: true,
  },
  { name: "bitmaps", options: { cluster_size: 4096 }, bitmaps: true, snapshots: true },
  { name: "preallocated", options: { cluster_size: 4096, preallocation: "metadata" } },
  { name: "lazy", options: { cluster_size: 2048, lazy_refcounts: "on" } },
  { name: "vm-state", options: { cluster_size: 4096 }, vmState: true, snapshots: true },
  {
    name: "extended-bitmaps",
    options: { cluster_size: 16384, extended_l2: "on" },
    bitmaps: true,
    vmState: true,
    snapshots: true,
  },
  { name: "data-file", options: { cluster_size: 4096, data_file: "" }, bitmaps: true },
  {
    name: "raw-data-file",
    options: { cluster_size: 65536, data_file: "", data_file_raw: "on" },
  },
  {
    name: "extended-data-file",
    options: { cluster_size: 16384, data_file: "", extended_l2: "on" },
  },
  { name: "luks", options: { cluster_size: 4096 }, encryption: "luks", snapshots: true },
  { name: "wide-luks", options: { cluster_size: 65536 }, encryption: "luks" },
  { name: "aes", options: { cluster_size: 4096 }, encryption: "aes", snapshots: true },
];

/** Make all samples in a directory: quick ones, a few megabytes each at the most. */
export function makeDamageSamples(directory: string): Promise<DamageSample[]> {
  return Promise.all(PLANS.map((plan) => makeSample(directory, plan)));
}

async function createSample(path: string, size: number, plan: SamplePlan): Promise<void> {
  const options = { ...plan.options };
  if (options["data_file"] !== undefined) options["data_file"] = `${path}.data`;
  if (plan.encryption === undefined) {
    await createImage(path, "qcow2", { size, options });
    return;
  }
  const encryption = [`encrypt.format=${plan.encryption}`, "encrypt.key-secret=key"];
  if (plan.encryption === "luks") encryption.push("encrypt.iter-time=10");
  const list = Object.entries(options).map(([name, value]) => `${name}=${value}`);
  await createEncryptedImage(path, [...encryption, ...list], String(size));
}

async function makeSample(directory: string, plan: SamplePlan): Promise<DamageSample> {
  const path = join(directory, `${plan.name}.qcow2`);
  const cluster = Number(plan.options["cluster_size"] ?? 65536);
  const size = cluster * 700 + 512;
  await createSample(path, size, plan);
  const format = plan.encryption === undefined ? "qcow2" : "encrypted qcow2";
  const at = (clusters: number): string => String(Math.floor(clusters * cluster));
  const image = plan.encryption === undefined ? [path] : encryptedArguments(path);
  const isExtended = plan.options["extended_l2"] !== undefined;
  await qemuIo(path, format, [
    `write -P 1 0 ${at(5)}`,
    `write -P 2 ${at(9.5)} ${at(3)}`,
    `write -P 3 ${at(690)} ${at(8)}`,
    ...(plan.options["compat"] === undefined
      ? [`write -z ${at(20)} ${at(4)}`, `write -z ${at(1)} ${at(1)}`]
      : []),
    ...(isExtended ? [`write -P 4 ${at(30)} 512`, `write -z ${at(40)} 2048`] : []),
  ]);
  if (plan.compressed === true) {
    const writes = [100, 101, 102, 103, 110, 111].map(
      (index) => `write -c -P ${index} ${at(index)} ${at(1)}`,
    );
    await qemuIo(path, format, writes);
  }
  if (plan.vmState === true) await qemuIo(path, format, [`write -b -P 9 0 ${at(3)}`]);
  if (plan.snapshots === true) {
    await run("qemu-img", ["snapshot", "-c", "first", ...image]);
    await qemuIo(path, format, [`write -P 5 ${at(2)} ${at(2)}`]);
    await run("qemu-img", ["snapshot", "-c", "second", ...image]);
    await qemuIo(path, format, [`write -P 6 ${at(11)} ${at(1)}`, `discard ${at(690)} ${at(2)}`]);
  }
  if (plan.bitmaps === true) {
    await run("qemu-img", ["bitmap", "--add", path, "one"]);
    await run("qemu-img", ["bitmap", "--add", "-g", "512", path, "fine"]);
    await qemuIo(path, format, [`write -P 7 ${at(50)} ${at(1)}`, `write -P 7 ${at(300)} ${at(1)}`]);
    await run("qemu-img", ["bitmap", "--add", "-g", "65536", path, "two"]);
  }
  return { name: plan.name, bytes: readFileSync(path), format };
}
