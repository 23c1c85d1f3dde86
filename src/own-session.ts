/**
 * Programs of the system that Ctrl-C must not end in the middle of what they do. A terminal sends its signals to all
 * processes of the foreground: whoever has started such a program hears them, too, and undoes what it has done.
 */

/** An option of spawn, and of spawnSync, whose type does not have it. */
export const OWN_SESSION: { readonly detached: boolean } = { detached: true };
