/** `tsimgfs umount`: end a mount, and wait until its daemon has closed everything. */

import type { Command } from "commander";
import { unmount } from "../../daemon/unmount.ts";

export function defineUmount(command: Command): void {
  command
    .description("Unmount; returns when the daemon has closed the images and is gone.")
    .argument("<mountpoint>")
    .option("-l, --lazy", "take it out of sight at once; what is open is served until it is closed")
    .addHelpText("after", "\nExample:\n  tsimgfs umount /mnt/images")
    .action((mountpoint: string, { lazy = false }: { lazy?: boolean }) =>
      unmount(mountpoint, { lazy }),
    );
}
