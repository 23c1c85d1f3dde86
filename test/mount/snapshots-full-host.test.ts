// A host that is full while snapshots of a mounted device are made, applied and deleted: who asked is told, the device and all
// snapshots keep their bytes, and when there is room again the same is done.

import { createHash } from "node:crypto";
import { open, readdir } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { FULL_HOSTS, type FullHost } from "../support/full-host.ts";
import { type Mount, mounted } from "../support/mounted.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { convertToRaw, createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { casesOfTransport } from "../support/transport.ts";
import { expectClean } from "../support/write-images.ts";

const MIB = 2 ** 20;
/** Of the host: some times what the image ever has. */
const HOST_SIZE = 64 * MIB;
/** Small clusters, so that tables and refcounts take many. */
const CLUSTER_SIZE = 4096;
/** Bytes that are in use in the disk. */
const USED = 6 * MIB;
/** Bytes that are more than any change of the snapshots takes. */
const ROOM_MAX = 40 * CLUSTER_SIZE;

interface World {
  readonly host: FullHost;
  readonly mount: Mount;
  readonly image: string;
  readonly device: string;
}

async function digestOf(path: string): Promise<string> {
  const { stdout } = await run("sh", ["-c", 'head -c "$1" "$0" | sha256sum', path, String(USED)]);
  return stdout.slice(0, 64);
}

async function write(device: string, bytes: Uint8Array, offset: number): Promise<void> {
  const file = await open(device, "r+");
  try {
    await file.write(bytes, 0, bytes.length, offset);
    await file.sync();
  } finally {
    await file.close();
  }
}

async function listed({ mount }: World): Promise<string[]> {
  return (await readdir(join(mount.mountPoint, "disk.snapshots"))).sort();
}

/** What a change of snapshots makes of the disk and its snapshots. */
interface Change {
  readonly action: "create" | "apply" | "delete";
  readonly name: string;
  /** Digest of the disk afterwards; default: as before. */
  readonly disk?: string;
  readonly snapshots: readonly string[];
}

/** Asks for a change on a full host, and again when there is room. Returns whether the first one was refused. */
async function changeWhenFull(world: World, change: Change, room: number): Promise<boolean> {
  const { host, device } = world;
  const { action, name } = change;
  const label = `${action} with ${room} bytes left`;
  const [disk, snapshots] = [await digestOf(device), await listed(world)];
  const ask = ["-n", `user.tsimgfs.snapshot.${action}`, "-v", name, device];
  const expectDone = async (when: string): Promise<void> => {
    expect(await digestOf(device), `${label}, ${when}`).toBe(change.disk ?? disk);
    expect(await listed(world), `${label}, ${when}`).toEqual(change.snapshots);
  };
  await host.leave(room);
  const { status, stderr } = await attempt("setfattr", ask);
  if (status === 0) await expectDone("done");
  else {
    expect(stderr, label).toContain("No space left on device");
    expect(await digestOf(device), label).toBe(disk);
    expect(await listed(world), label).toEqual(snapshots);
  }
  await host.makeRoom();
  if (status === 0) return false;
  await run("setfattr", ask);
  await expectDone("again");
  return true;
}

/** Makes a snapshot, writes, applies the snapshot and deletes it, each with so many bytes left. */
async function changeAll(world: World, room: number, random: Random): Promise<string[]> {
  const { device } = world;
  const refused: string[] = [];
  const note = async (change: Change): Promise<void> => {
    if (await changeWhenFull(world, change, room)) refused.push(change.action);
  };
  const before = await digestOf(device);
  await note({ action: "create", name: "now", snapshots: ["first.raw", "now.raw"] });
  const offset = random.below(USED / CLUSTER_SIZE / 2) * CLUSTER_SIZE;
  await write(device, random.bytes(MIB), offset);
  expect(await digestOf(device)).not.toBe(before);
  await note({ action: "apply", name: "now", disk: before, snapshots: ["first.raw", "now.raw"] });
  await write(device, random.bytes(CLUSTER_SIZE), offset);
  await note({ action: "delete", name: "now", snapshots: ["first.raw"] });
  return refused;
}

describe.skipIf(!IS_ROOT)("snapshots of a device whose host is full (needs root)", () => {
  it.each(casesOfTransport("full host", FULL_HOSTS, 1))(
    "are there as a whole or not at all, and later: $name",
    async ({ name, withHost }) => {
      await withHost(HOST_SIZE, async (host) => {
        const random = new Random(`full host ${name}`);
        const image = join(host.directory, "disk.qcow2");
        // An L1 table of many clusters.
        const options = { cluster_size: CLUSTER_SIZE };
        await createImage(image, "qcow2", { size: 4096 * MIB, options });
        await qemuIo(image, "qcow2", [`write -q -P 1 0 ${USED}`]);
        const first = createHash("sha256").update(Buffer.alloc(USED, 1)).digest("hex");
        let last = first;
        await mounted([image], {}, async (mount) => {
          const device = mount.device(image);
          const world: World = { host, mount, image, device };
          await run("setfattr", ["-n", "user.tsimgfs.snapshot.create", "-v", "first", device]);
          await write(device, random.bytes(MIB), 4 * MIB);
          const refused = await changeAll(world, 0, random);
          // Deleting finds room in what it has freed itself before.
          expect(refused).toContain("create");
          for (let round = 0; round < byScale(1, 12); round++) {
            await changeAll(
              world,
              random.between(1, ROOM_MAX / CLUSTER_SIZE) * CLUSTER_SIZE,
              random,
            );
          }
          expect(await digestOf(mount.snapshot(image, "first"))).toBe(first);
          last = await digestOf(device);
        });
        await expectClean(image);
        await convertToRaw(image, "qcow2", join(host.directory, "disk.raw"));
        expect(await digestOf(join(host.directory, "disk.raw"))).toBe(last);
      });
    },
  );
});
