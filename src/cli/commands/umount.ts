/** `tsimgfs umount`: end a mount, and wait until its daemon has closed everything. */

import { unmount } from "../../daemon/unmount.ts";
import type { DocumentedCommand } from "../documented-command.ts";

export function defineUmount(command: DocumentedCommand): void {
  command
    .description("Unmount; returns when the daemon has closed the images and is gone.")
    .argument("<mountpoint>", "a directory, or file, that images are mounted on")
    .option("-l, --lazy", "take it out of sight at once; what is open is served until it is closed")
    .document({
      details: [
        "While somebody uses the mount, it is not unmounted: fuser -vm MOUNTPOINT, as root, lists who does. Of a daemon that was killed, umount clears what it has left.",
      ],
      examples: [["End a mount", "tsimgfs umount /mnt/images"]],
      seeAlso: ["mount", "list", "fuser(1)", "fusermount3(1)"],
    })
    .action((mountpoint: string, { lazy = false }: { lazy?: boolean }) =>
      unmount(mountpoint, { lazy }),
    );
}
