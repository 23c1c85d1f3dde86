/** The images that crash and model tests start from: one for each way in which clusters are kept. */

import type { ImageFormat } from "./qemu.ts";

export const DATA_FILE_NAME = "data.raw";

/** Test files that share the recipes out: new clusters, clusters with something below, other kinds, sizes. */
export type RecipeGroup = "plain" | "shared" | "special" | "resized";

export interface ImageRecipe {
  readonly name: string;
  readonly group: RecipeGroup;
  readonly format: ImageFormat;
  /** Bytes. */
  readonly virtualSize: number;
  readonly clusterSize: number;
  /** Creation options. */
  readonly options?: Readonly<Record<string, string | number>>;
  /** A backing file of `size` bytes with random content. */
  readonly backing?: { readonly format: ImageFormat; readonly size: number };
  /** Data, zeros and holes are there from the start; "compressed": compressed clusters. */
  readonly content?: "some" | "compressed" | "none";
  /** Bytes from the start of the disk on that are written, in one go. */
  readonly prefill?: number;
  /** The size of the disk changes, up to this many times what it was. */
  readonly growth?: number;
  /** It never becomes less. */
  readonly growsOnly?: boolean;
  /** Internal snapshots that exist from the start. */
  readonly snapshots?: number;
  /** Creation options of the encryption. */
  readonly encryption?: readonly string[];
  /** Left by a crash of QEMU that had not updated refcounts. */
  readonly dirty?: boolean;
}

const KIB = 1024;
const MIB = 1024 * KIB;

const CLUSTERS_64K = { virtualSize: 6 * MIB, clusterSize: 64 * KIB } as const;
const CLUSTERS_4K = { virtualSize: 2 * MIB, clusterSize: 4 * KIB } as const;
const CLUSTERS_512 = { virtualSize: 512 * KIB, clusterSize: 512 } as const;
/**
 * Of QED, with tables of two clusters: each maps 4 MiB. Of files with more clusters than one cluster has bytes,
 * qemu-img check counts leaks that are none.
 */
const QED_4K = { virtualSize: 9 * MIB, clusterSize: 4 * KIB, options: { table_size: 2 } } as const;

export const LUKS = ["encrypt.format=luks", "encrypt.iter-time=0"] as const;
const LEGACY_AES = ["encrypt.format=aes"] as const;

export const RECIPES: readonly ImageRecipe[] = [
  { name: "64k", group: "plain", format: "qcow2", ...CLUSTERS_64K },
  { name: "4k", group: "plain", format: "qcow2", ...CLUSTERS_4K, content: "some" },
  { name: "512", group: "plain", format: "qcow2", ...CLUSTERS_512 },
  {
    name: "v2 64k",
    group: "plain",
    format: "qcow2",
    ...CLUSTERS_64K,
    options: { compat: "0.10" },
  },
  {
    name: "64k, several reservations",
    group: "plain",
    format: "qcow2",
    virtualSize: 40 * MIB,
    clusterSize: 64 * KIB,
  },
  {
    name: "4k, 1-bit refcounts",
    group: "plain",
    format: "qcow2",
    ...CLUSTERS_4K,
    options: { refcount_bits: 1 },
  },
  {
    // One refcount table of 64 entries, for 64 clusters each, counts 2 MiB.
    name: "512, 64-bit refcounts, growing refcount table",
    group: "plain",
    format: "qcow2",
    virtualSize: 5 * MIB,
    clusterSize: 512,
    options: { refcount_bits: 64 },
    prefill: 1900 * KIB,
  },
  {
    name: "4k preallocated",
    group: "plain",
    format: "qcow2",
    ...CLUSTERS_4K,
    options: { preallocation: "metadata" },
  },
  {
    name: "4k lazy refcounts",
    group: "plain",
    format: "qcow2",
    ...CLUSTERS_4K,
    options: { lazy_refcounts: "on" },
    content: "some",
  },
  {
    name: "4k left dirty",
    group: "plain",
    format: "qcow2",
    ...CLUSTERS_4K,
    options: { lazy_refcounts: "on" },
    content: "some",
    dirty: true,
  },
  { name: "raw", group: "plain", format: "raw", ...CLUSTERS_4K, content: "some" },
  { name: "QED 64k", group: "plain", format: "qed", ...CLUSTERS_64K },
  { name: "QED 4k", group: "plain", format: "qed", ...QED_4K, content: "some" },
  {
    name: "QED 64k, several reservations",
    group: "plain",
    format: "qed",
    virtualSize: 40 * MIB,
    clusterSize: 64 * KIB,
  },
  {
    name: "QED 4k left to be checked",
    group: "plain",
    format: "qed",
    ...QED_4K,
    content: "some",
    dirty: true,
  },
  {
    name: "v2 512 over raw",
    group: "shared",
    format: "qcow2",
    ...CLUSTERS_512,
    options: { compat: "0.10" },
    backing: { format: "raw", size: 300 * KIB },
  },
  {
    name: "64k over qcow2",
    group: "shared",
    format: "qcow2",
    ...CLUSTERS_64K,
    backing: { format: "qcow2", size: 6 * MIB },
  },
  {
    name: "4k over a shorter raw",
    group: "shared",
    format: "qcow2",
    ...CLUSTERS_4K,
    backing: { format: "raw", size: MIB + 3 * KIB },
    content: "some",
  },
  {
    name: "QED 64k over qcow2",
    group: "shared",
    format: "qed",
    ...CLUSTERS_64K,
    backing: { format: "qcow2", size: 6 * MIB },
  },
  {
    name: "QED 4k over a shorter raw",
    group: "shared",
    format: "qed",
    ...QED_4K,
    backing: { format: "raw", size: 5 * MIB + 3 * KIB },
    content: "some",
  },
  {
    name: "4k with snapshots",
    group: "shared",
    format: "qcow2",
    ...CLUSTERS_4K,
    content: "some",
    snapshots: 2,
  },
  {
    name: "v2 4k over qcow2 with a snapshot",
    group: "shared",
    format: "qcow2",
    ...CLUSTERS_4K,
    options: { compat: "0.10" },
    backing: { format: "qcow2", size: MIB },
    content: "some",
    snapshots: 1,
  },
  {
    name: "64k compressed",
    group: "special",
    format: "qcow2",
    ...CLUSTERS_64K,
    content: "compressed",
  },
  {
    name: "4k compressed with a snapshot",
    group: "special",
    format: "qcow2",
    ...CLUSTERS_4K,
    content: "compressed",
    snapshots: 1,
  },
  {
    name: "extended L2 64k",
    group: "special",
    format: "qcow2",
    ...CLUSTERS_64K,
    options: { extended_l2: "on" },
    content: "some",
  },
  {
    name: "extended L2 16k over qcow2 with a snapshot",
    group: "special",
    format: "qcow2",
    virtualSize: 2 * MIB,
    clusterSize: 16 * KIB,
    options: { extended_l2: "on" },
    backing: { format: "qcow2", size: 2 * MIB },
    content: "some",
    snapshots: 1,
  },
  {
    name: "64k with an external data file",
    group: "special",
    format: "qcow2",
    ...CLUSTERS_64K,
    options: { data_file: DATA_FILE_NAME },
    content: "some",
  },
  {
    name: "4k with a raw external data file",
    group: "special",
    format: "qcow2",
    ...CLUSTERS_4K,
    options: { data_file: DATA_FILE_NAME, data_file_raw: "on" },
  },
  {
    name: "64k LUKS over qcow2",
    group: "special",
    format: "qcow2",
    virtualSize: 2 * MIB,
    clusterSize: 64 * KIB,
    encryption: LUKS,
    backing: { format: "qcow2", size: MIB },
    content: "some",
  },
  {
    name: "4k AES, resized",
    group: "special",
    format: "qcow2",
    virtualSize: MIB,
    clusterSize: 4 * KIB,
    encryption: LEGACY_AES,
    content: "some",
    growth: 3,
  },
  {
    name: "4k, resized",
    group: "resized",
    format: "qcow2",
    ...CLUSTERS_4K,
    content: "some",
    snapshots: 1,
    growth: 6,
  },
  {
    // Growing must not show what the backing file has behind the old end.
    name: "512, resized, over a longer raw",
    group: "resized",
    format: "qcow2",
    virtualSize: 128 * KIB,
    clusterSize: 512,
    backing: { format: "raw", size: 400 * KIB },
    growth: 8,
  },
  {
    name: "v2 4k, resized",
    group: "resized",
    format: "qcow2",
    ...CLUSTERS_4K,
    options: { compat: "0.10" },
    content: "some",
    growth: 4,
  },
  {
    name: "v2 4k, resized, over a longer qcow2",
    group: "resized",
    format: "qcow2",
    virtualSize: 300 * KIB,
    clusterSize: 4 * KIB,
    options: { compat: "0.10" },
    backing: { format: "qcow2", size: 2 * MIB },
    growth: 8,
  },
  {
    name: "extended L2 16k, resized, over a longer raw",
    group: "resized",
    format: "qcow2",
    virtualSize: MIB,
    clusterSize: 16 * KIB,
    options: { extended_l2: "on" },
    backing: { format: "raw", size: 3 * MIB },
    growth: 4,
  },
  {
    name: "64k with a raw external data file, resized",
    group: "resized",
    format: "qcow2",
    ...CLUSTERS_64K,
    options: { data_file: DATA_FILE_NAME, data_file_raw: "on" },
    growth: 3,
  },
  {
    name: "QED, growing",
    group: "resized",
    format: "qed",
    virtualSize: 2 * MIB,
    clusterSize: 64 * KIB,
    options: { table_size: 2 },
    content: "some",
    growth: 4,
    growsOnly: true,
  },
  {
    name: "QED, growing, over a longer raw",
    group: "resized",
    format: "qed",
    virtualSize: 300 * KIB,
    clusterSize: 64 * KIB,
    options: { table_size: 2 },
    backing: { format: "raw", size: 5 * MIB },
    growth: 4,
    growsOnly: true,
  },
  { name: "raw, resized", group: "resized", format: "raw", ...CLUSTERS_4K, growth: 3 },
];

export function hasDataFile(recipe: ImageRecipe): boolean {
  return recipe.options?.["data_file"] !== undefined;
}
