/** `tsimgfs umount`: end a mount, and wait until its daemon has closed everything. */

import { unmount } from "../../daemon/unmount.ts";
import type { DocumentedCommand } from "../documented-command.ts";

export function defineUmount(command: DocumentedCommand): void {
  command
    .description("Unmount images. Returns when the daemon has closed them and has ended.")
    .argument("<mountpoint>", "the directory or file that images are mounted on")
    .option("-l, --lazy", "detach it at once; open files are served until they are closed")
    .document({
      details: [
        "A mount that is in use is not unmounted; as root, fuser -vm MOUNTPOINT lists who uses it. After a daemon was killed, umount clears its dead mount.",
      ],
      examples: [["Unmount", "tsimgfs umount /mnt/images"]],
      seeAlso: ["mount", "list", "fuser(1)", "fusermount3(1)"],
    })
    .action((mountpoint: string, { lazy = false }: { lazy?: boolean }) =>
      unmount(mountpoint, { lazy }),
    );
}
