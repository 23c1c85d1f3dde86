/** Finding the device of a mount that shows an image: for images that cannot be opened a second time. */

import fs from "node:fs";
import { listMounts } from "../daemon/mounts.ts";

/** The path of a device that shows an image and can be written to; undefined: there is none. */
export function writableDeviceOf(image: string): string | undefined {
  const { dev, ino } = fs.statSync(image);
  const shows = (path: string): boolean => {
    const stats = fs.statSync(path, { throwIfNoEntry: false });
    return stats?.dev === dev && stats.ino === ino;
  };
  const devices = listMounts().flatMap((mount) => mount.devices);
  return devices.find((device) => shows(device.image) && isWritable(device.device))?.device;
}

function isWritable(path: string): boolean {
  try {
    fs.accessSync(path, fs.constants.W_OK);
    return true;
  } catch {
    return false;
  }
}
