/**
 * Lines of a script that begin what happens in a mount namespace of its own: the copies of others' mounts go, in
 * there, since they would keep daemons alive that others wait for.
 */
export const WITHOUT_OTHERS = `
[ "$(findmnt --noheadings --output PROPAGATION /)" = private ]
umount --internal-only --lazy --all --types fuse.tsimgfs || :
`;
