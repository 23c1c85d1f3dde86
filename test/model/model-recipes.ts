/** The images of the model test: those of the crash tests, and larger ones. */

import { type ImageRecipe, LUKS, RECIPES } from "../support/crash-recipes.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;

export const MODEL_RECIPES: readonly ImageRecipe[] = [
  ...RECIPES,
  {
    name: "extended L2 16k LUKS with a snapshot",
    group: "special",
    format: "qcow2",
    virtualSize: MIB,
    clusterSize: 16384,
    options: { extended_l2: "on" },
    encryption: LUKS,
    content: "some",
    snapshots: 1,
  },
  {
    name: "2M clusters over qcow2",
    group: "plain",
    format: "qcow2",
    virtualSize: 64 * MIB,
    clusterSize: 2 * MIB,
    backing: { format: "qcow2", size: 5 * MIB },
  },
  {
    name: "extended L2 2M",
    group: "special",
    format: "qcow2",
    virtualSize: 64 * MIB,
    clusterSize: 2 * MIB,
    options: { extended_l2: "on" },
    content: "some",
  },
  {
    // What is new because of the snapshot lies behind what was allocated ahead.
    name: "64k, past 4 GiB of the image file",
    group: "shared",
    format: "qcow2",
    virtualSize: 5 * GIB,
    clusterSize: 65536,
    options: { preallocation: "metadata" },
    snapshots: 1,
  },
  {
    name: "QED 2M over raw",
    group: "shared",
    format: "qed",
    virtualSize: 64 * MIB,
    clusterSize: 2 * MIB,
    options: { table_size: 4 },
    backing: { format: "raw", size: 5 * MIB },
  },
  {
    name: "QED 64k, 4 TiB",
    group: "plain",
    format: "qed",
    virtualSize: 4096 * GIB,
    clusterSize: 65536,
  },
  {
    name: "64k, 4 TiB",
    group: "plain",
    format: "qcow2",
    virtualSize: 4096 * GIB,
    clusterSize: 65536,
  },
];
