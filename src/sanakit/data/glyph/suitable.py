"""Names that stay out of the set: brands and their products, characters, and what harms."""

from __future__ import annotations

import re

LICENCES = frozenset(
    {"MIT", "Apache-2.0", "ISC", "BSD-3-Clause", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "Unlicense"}
)

_BRANDS = """
adobe aftereffects airbnb airdrop airpod airpods alipay amazon android angular apple\\ music
apple\\ pay apple\\ podcast apple\\ tv apple\\ watch arduino atlassian audi authy aws azure baidu
bandcamp behance bilibili bing bitbucket blackberry blender blizzard blogger bmw bootstrap burger\\ king
cadillac canva chrome chromecast codepen coinbase converse css3? cydia dailymotion deezer
deviantart dingtalk discord disney docker douban douyin dreamweaver dribbble drupal ebay edge\\ browser
electron etsy evernote expedia facebook ferrari fedora figma firefox fitbit flickr flutter
foursquare friendster gameboy git github gitlab gmail google gopro gravatar groupon hangouts harry\\ potter
honda html5? huawei hulu ibm illustrator imac imdb indesign instagram instagramm intel
internet\\ explorer ios ipad ipados iphone ipod itunes java javascript jenkins jira jquery jsfiddle
kaspersky kickstarter kindle kinect lamborghini lastfm lego lexus line\\ app linkedin linux
macbook magicmouse mario mastercard mastodon medium\\ logo mercedes messenger meta microsoft minecraft
mitsubishi mozilla myspace nasa netflix nextjs nfc nike nintendo nodejs notion npm nvidia oculus
ok\\ google onedrive openai opera osx outlook pac\\ man pacman pandora pantone patreon paypal pepsi
periscope photoshop php picasa pikachu pinterest playstation pok[eé]\\ ?ball pokemon porsche powerpoint
premiere\\ pro prezi producthunt python qq qzone quora raspberry\\ pi react reddit renault retina
roku ruby\\ on\\ rails safari sass scratch sega shazam shopify signal\\ app sina siri sketch\\ app skype
slack slackware slideshare snapchat soundcloud spaceinvaders spongebob spotify squarespace stackoverflow
star\\ wars starbucks steam\\ logo steve\\ jobs sublime superman batman spiderman svelte tesla telegram tencent
tesla threads\\ app tiktok tinder toyota trello tripadvisor tumblr twitch twitter twitter\\ bird
typescript uber ubuntu unity unsplash uplay vespa viber vimeo vine visa visual\\ studio vk volkswagen
vsco vue walkman wechat weibo weixin whatsapp wii wikipedia windows\\ logo winamp winrar wordpress word\\ press
x\\ logo xbox xiaomi yahoo yelp youtube yuque zalo zhihu zelda zoom\\ logo darth\\ vader r2d2 chewbacca
yoda stormtrooper hello\\ kitty mickey mcdonalds coca\\ cola boba\\ fett c3po
einstein hitler jesus gandhi obama trump
"""
_HARMFUL = """
suicide hanged gallows gibbet guillotine decapitation severed beheaded impaled impalement corpse carnage
nazi swastika confederate sexual sex sexy penis vagina vulva testicles? genital genitals condoms?
breasts? naked nude nudity bra panties lingerie bikini underwear thong slavery slave
execution torture lynch abortion rape wound disembowel\\w* dismember\\w* stabbed bloody cocaine heroin
syringe\\ blood marijuana cannabis cigarette sperm intercourse lust brothel prostitut\\w*
"""


def _words(table: str) -> re.Pattern[str]:
    """A pattern for any of the words of a table, whole, with spaces written as \\ and a space."""
    words = re.split(r"(?<!\\)\s+", table.strip())
    return re.compile(rf"\b(?:{'|'.join(words)})\b")


_BRAND = _words(_BRANDS)
_HARM = _words(_HARMFUL)
_LOGO = re.compile(r"\b(?:logo|logos|brand|trademark|trade mark|registered|copyright)\b")


def is_brand(name: str) -> bool:
    """Whether a plain name, as words, names a brand, a product, a character or a real person."""
    return bool(_BRAND.search(name) or _LOGO.search(name))


def is_suitable(name: str) -> bool:
    """Whether a plain name, as words, may enter the set: no brand and nothing that harms."""
    return not (is_brand(name) or _HARM.search(name))
